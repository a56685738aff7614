"""Who may import whom. The graph is read from the syntax trees, so an import inside a function counts as well.

The four top folders are mapped into one package, as pyproject.toml does it. Imports under ``if TYPE_CHECKING:`` are for
the type checker alone and make no arrow. Here a *package* is a subpackage of medmamba, or a module that lies beside
them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from medmamba import _API

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"medmamba": "medmamba", "medmamba.cli": "cli", "medmamba.kernels": "kernels", "medmamba.plans": "plans"}
Graph = Mapping[str, set[str]]

LAZY_API = "medmamba"
"""The one module that may look names up when they are asked for: ``import medmamba`` costs nothing."""

LIGHT = {"plans", "errors", "geometry", "options", "plugins", "version"}
"""Packages that a plan may reach."""
LIGHT_LIBRARIES = {*sys.stdlib_module_names, "medmamba", "numpy", "pydantic"}
"""What these may import: nothing that computes or reads images."""


def module_files() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


FILES = module_files()
PACKAGE_MODULES = {name for name, path in FILES.items() if path.name == "__init__.py"}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}


def nodes(source: str) -> Iterator[ast.AST]:
    """Every node of a source, but for what stands under exactly ``if TYPE_CHECKING:``."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def named(source: str, module: str) -> Iterator[tuple[str, str]]:
    """(module, name in it or "") of every import in the source of ``module``, of every kind that can be read off it.

    Read are ``import``, ``from``, relative ones too, ``import_module`` and ``__import__`` of a text, and the attributes
    of a name that ``import medmamba`` has bound.
    """
    own = {
        alias.asname or alias.name.split(".")[0]
        for node in nodes(source)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == LAZY_API or (alias.name.startswith(f"{LAZY_API}.") and alias.asname is None)
    }
    for node in nodes(source):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + (module in PACKAGE_MODULES)] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), ""
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in own:
            yield LAZY_API, node.attr


def imports(source: str, known: Mapping[str, object], module: str = "") -> Iterator[str]:
    """Modules among ``known`` that a source imports anywhere; a name of the lazy API stands for its module."""
    for base, name in named(source, module):
        folder = base.split(".")[0]
        base = f"medmamba.{base}" if f"medmamba.{folder}" in FOLDERS else base  # as a checkout's root offers them
        inner = f"{base}.{name}"
        target = _API.get(name, inner) if base == LAZY_API else inner
        if target in known:
            yield target
        elif base in known:
            yield base


def file_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> modules that it imports."""
    return {name: set(imports(source, sources, name)) - {name} for name, source in sources.items()}


def package_of(module: str) -> str:
    """``medmamba.plans.cost.step`` lies in ``plans``; ``medmamba.errors`` is one by itself."""
    return ".".join(module.split(".")[1:2]) or module


def package_graph(files: Graph) -> dict[str, set[str]]:
    """Package -> packages that it imports."""
    packages: dict[str, set[str]] = {}
    for module, targets in files.items():
        packages.setdefault(package_of(module), set()).update(package_of(target) for target in targets)
    return {package: targets - {package} for package, targets in packages.items()}


def circle(graph: Graph) -> list[str]:
    """The names along one circle of the graph; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def reached(graph: Graph, start: str) -> set[str]:
    """Everything that ``start`` imports, directly or not."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), set()) - found:
            found.add(target)
            waiting.append(target)
    return found


def hides_behind_getattr(source: str) -> bool:
    """Whether a module itself, at any depth of its own statements, binds ``__getattr__``."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound = node.name  # what stands inside is not the module's
        else:
            waiting += ast.iter_child_nodes(node)
            bound = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ""
            bound = (node.asname or node.name) if isinstance(node, ast.alias) else bound
        if bound == "__getattr__":
            return True
    return False


def faults(graph: Graph) -> list[str]:
    """What the import rules say against a graph of files, one line each."""
    packages = package_graph(graph)
    found = [f"circle of files: {circle(graph)}"] * bool(circle(graph))
    found += [f"circle of packages: {circle(packages)}"] * bool(circle(packages))
    for module, targets in graph.items():
        own, direct = package_of(module), set(map(package_of, targets))
        found += [f"{module} imports the command line"] * (own != "cli" and "cli" in direct)
        found += [f"{module} imports {sorted(direct - {own})}"] * (own == "kernels" and bool(direct - {own}))
        if own in ("plans", "inference"):
            there = set(map(package_of, reached(graph, module)))
            found += [f"{module} reaches {sorted(there - LIGHT)}"] * (own == "plans" and not there <= LIGHT)
            found += [f"{module} reaches training"] * (own == "inference" and "training" in there)
    return found


def heavy_libraries(module: str, source: str) -> set[str]:
    """Libraries that a module which plans reach may not import."""
    if package_of(module) not in LIGHT:
        return set()
    return {base.split(".")[0] for base, _ in named(source, module)} - LIGHT_LIBRARIES


GRAPH = file_graph(SOURCES)
PACKAGES = package_graph(GRAPH)


def test_the_import_rules_hold():
    assert faults(GRAPH) == []


@pytest.mark.parametrize("module", sorted(FILES))
def test_plans_reach_no_library_that_computes_or_reads_images(module):
    assert heavy_libraries(module, SOURCES[module]) == set()


@pytest.mark.parametrize("module", sorted(set(FILES) - {LAZY_API}))
def test_no_module_hides_an_import_behind_getattr(module):
    assert not hides_behind_getattr(SOURCES[module])


PATCH, PREDICTOR, REPORT = "medmamba.plans.patch", "medmamba.inference.predictor", "medmamba.kernels.report"
IN_FUNCTION = "def planted():\n    "


@pytest.mark.parametrize(
    ("module", "planted", "fault"),
    [
        (PATCH, f"{IN_FUNCTION}from . import planner", "circle of files"),
        (PATCH, f"{IN_FUNCTION}from .planner import make_plan", "circle of files"),
        (PATCH, f"{IN_FUNCTION}from medmamba.plans import planner", "circle of files"),
        (PATCH, "from medmamba.plans.planner import *", "circle of files"),
        (PATCH, f"{IN_FUNCTION}importlib.import_module('medmamba.plans.planner')", "circle of files"),
        (PATCH, f"{IN_FUNCTION}import_module('medmamba.plans.planner')", "circle of files"),
        (PATCH, f"{IN_FUNCTION}__import__('medmamba.plans.planner')", "circle of files"),
        (PATCH, "if not TYPE_CHECKING:\n    import medmamba.plans.planner", "circle of files"),
        (PATCH, "if TYPE_CHECKING or True:\n    import medmamba.plans.planner", "circle of files"),
        (PATCH, "if 'no TYPE_CHECKING':\n    import medmamba.plans.planner", "circle of files"),
        (PATCH, "if TYPE_CHECKING:\n    pass\nelse:\n    import medmamba.plans.planner", "circle of files"),
        (PATCH, "from plans import planner", "circle of files"),
        (PREDICTOR, f"{IN_FUNCTION}import medmamba\n    return medmamba.train", f"{PREDICTOR} reaches training"),
        (PREDICTOR, f"{IN_FUNCTION}import medmamba as m\n    return m.train", f"{PREDICTOR} reaches training"),
        (PREDICTOR, f"{IN_FUNCTION}from medmamba import train", f"{PREDICTOR} reaches training"),
        (PREDICTOR, f"{IN_FUNCTION}from ..training import trainer", f"{PREDICTOR} reaches training"),
        (REPORT, "from .. import errors", f"{REPORT} imports ['errors']"),
        (REPORT, "from medmamba import errors", f"{REPORT} imports ['errors']"),
        (REPORT, "import medmamba", f"{REPORT} imports ['medmamba']"),
        (PATCH, "from medmamba.images import gate", f"{PATCH} reaches"),
        ("medmamba.planning.run", f"{IN_FUNCTION}from medmamba.cli.main import run", "imports the command line"),
        ("medmamba.planning.run", "import medmamba.cli", "imports the command line"),
        ("medmamba.planning.run", "import cli.main", "imports the command line"),
    ],
)
def test_a_planted_import_is_found(module, planted, fault):
    changed = {**GRAPH, module: set(imports(f"{SOURCES[module]}\n{planted}\n", SOURCES, module)) - {module}}
    assert any(fault in line for line in faults(changed)), planted


@pytest.mark.parametrize(
    "planted",
    [
        f"{IN_FUNCTION}import torch",
        f"{IN_FUNCTION}import_module('torch')",
        "import scipy.ndimage",
        "from scipy import ndimage",
        "import pydicom, batchgenerators",
        "import torchvision",
        "import safetensors.torch",
        "from skimage.io import imread",
        "import highdicom",
    ],
)
def test_a_planted_library_is_found(planted):
    assert heavy_libraries(PATCH, f"{SOURCES[PATCH]}\n{planted}\n")
    assert not heavy_libraries(PREDICTOR, planted)


@pytest.mark.parametrize(
    "planted",
    [
        "def __getattr__(name):\n    raise AttributeError",
        "async def __getattr__(name):\n    raise AttributeError",
        "__getattr__ = lambda name: __import__('medmamba.plans.planner')",
        "__getattr__: object = print",
        "if True:\n    def __getattr__(name):\n        raise AttributeError",
        "from medmamba import __getattr__",
        "from medmamba.errors import first_line as __getattr__",
    ],
)
def test_a_planted_getattr_is_found(planted):
    assert hides_behind_getattr(f"{SOURCES[PATCH]}\n{planted}\n")
    assert not hides_behind_getattr("class Proxy:\n    def __getattr__(self, name):\n        raise AttributeError\n")


def test_a_relative_import_of_a_package_begins_at_the_package_itself():
    source = "from . import step\nfrom ..planner import make_plan\n"
    wanted = {"medmamba.plans.cost.step", "medmamba.plans.planner"}
    assert set(imports(source, SOURCES, "medmamba.plans.cost")) == wanted


def test_what_only_the_type_checker_reads_makes_no_arrow():
    sources = {
        "medmamba.plans.spacing": "if TYPE_CHECKING:\n    import medmamba.plans.grid\n",
        "medmamba.plans.grid": "import medmamba.plans.spacing\n",
    }
    assert file_graph(sources) == {"medmamba.plans.spacing": set(), "medmamba.plans.grid": {"medmamba.plans.spacing"}}
    assert package_graph({"medmamba.plans.patch": {"medmamba.errors"}, "medmamba.errors": set()}) == {
        "plans": {"errors"},
        "errors": set(),
    }
    assert circle({"a": {"b"}, "b": {"a"}})
