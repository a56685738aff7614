"""Who may import whom. The graph is read from the syntax trees, so an import inside a function counts as well.

The four top folders are mapped into one package, as pyproject.toml does it. Imports under TYPE_CHECKING are for the
type checker alone and make no arrow. Here a *package* is a subpackage of medmamba, or a module that lies beside them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"medmamba": "medmamba", "medmamba.cli": "cli", "medmamba.kernels": "kernels", "medmamba.plans": "plans"}
Graph = Mapping[str, set[str]]

LAZY_API = "medmamba"
"""The one module that may look names up when they are asked for: ``import medmamba`` costs nothing."""


def module_files() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


FILES = module_files()


def imports(source: str, known: Mapping[str, object]) -> Iterator[str]:
    """Modules among ``known`` that a source imports anywhere, but for TYPE_CHECKING blocks."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def file_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> modules that it imports."""
    return {name: set(imports(path.read_text(encoding="utf-8"), files)) - {name} for name, path in files.items()}


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


GRAPH = file_graph(FILES)
PACKAGES = package_graph(GRAPH)


def test_no_circle_between_files():
    assert circle(GRAPH) == []


def test_no_circle_between_packages():
    assert circle(PACKAGES) == []


def test_nothing_imports_the_command_line():
    assert [
        module for module, targets in GRAPH.items() if package_of(module) != "cli" and "cli" in map(package_of, targets)
    ] == []


def test_kernels_import_nothing_of_ours():
    assert PACKAGES["kernels"] == set()


def test_plans_reach_neither_torch_nor_voxels():
    allowed = {"plans", "errors", "geometry", "options", "plugins", "version"}
    for module in GRAPH:
        if package_of(module) == "plans":
            assert set(map(package_of, reached(GRAPH, module))) <= allowed, module
    for module in GRAPH:
        if package_of(module) in allowed:
            tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
            names = {
                (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            heavy = {"torch", "monai", "SimpleITK", "nibabel", "blosc2", "PIL"}
            assert not {name.split(".")[0] for name in names} & heavy, module


def test_inference_does_not_import_training():
    for module in GRAPH:
        if package_of(module) == "inference":
            assert "training" not in map(package_of, reached(GRAPH, module)), module


@pytest.mark.parametrize("module", sorted(set(FILES) - {LAZY_API}))
def test_no_module_hides_an_import_behind_getattr(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]


def test_a_planted_circle_is_found(tmp_path):
    sources = {
        "medmamba.plans.patch": "from medmamba.plans.batch import choose_batch_size\n",
        "medmamba.plans.batch": "def late():\n    from medmamba.plans import patch\n",
        "medmamba.plans.spacing": "if TYPE_CHECKING:\n    import medmamba.plans.grid\n",
        "medmamba.plans.grid": "import medmamba.plans.spacing\n",
    }
    files = {}
    for name, text in sources.items():
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(text)
    graph = file_graph(files)
    assert set(circle(graph)) == {"medmamba.plans.patch", "medmamba.plans.batch"}
    assert graph["medmamba.plans.spacing"] == set()
    assert package_graph({"medmamba.plans.patch": {"medmamba.errors"}, "medmamba.errors": set()}) == {
        "plans": {"errors"},
        "errors": set(),
    }
    assert circle({"a": {"b"}, "b": {"a"}})
