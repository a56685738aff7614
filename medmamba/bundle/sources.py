"""The scripts/ folder of a bundle: our own sources, copied with what they import.

Starting from the files in ``runtime/`` the imports are followed. Every file keeps its place
(``medmamba.networks.routes`` becomes ``scripts/networks/routes.py``); those in ``EXCHANGED`` give way to small versions
that need torch, MONAI, numpy and scipy alone. A network of another package comes along: the module that registers it
and what that imports from its own package are copied to ``scripts/external/``.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec, resolve_name
from pathlib import Path

from medmamba.errors import ConfigError

ENTRIES = ("network", "inferer", "transforms", "expected", "cases", "graphs", "finetune", "weights")
_RUNTIME = "medmamba.bundle.runtime"
EXCHANGED = {
    "medmamba.kernels": f"{_RUNTIME}.operators",
    "medmamba.kernels.availability": f"{_RUNTIME}.availability",
    "medmamba.models.expectations": f"{_RUNTIME}.expectations",
    "medmamba.plans.schema": f"{_RUNTIME}.plan",
}
COMPILED = "medmamba.kernels."  # imported inside functions that a bundle never calls; they keep their names
_IMPORT = re.compile(
    r"^((?: +(?!\w+ medmamba\.kernels\.))?(?:from|import) )medmamba(?:\.bundle\.runtime)?\b", re.MULTILINE
)

EXTERNAL = "scripts.external"
PACKAGES = {"torch", "monai", "numpy", "scipy"}
"""What a bundle needs installed; see ``card.py``."""


@dataclass(frozen=True)
class _Source:
    """A module to copy: its dotted name, its file, the text of that."""

    module: str
    path: Path
    text: str

    @property
    def ours(self) -> bool:
        return _top(self.module) == "medmamba"


def bundle_sources(networks: Iterable[str] = ()) -> dict[str, str]:
    """Path below scripts/ to source text, every import rewritten from ``medmamba`` to ``scripts``.

    Sources of ``networks`` that other packages register are added. Raises ConfigError for one that cannot be copied.
    """
    external = sorted({module for name in networks if _top(module := _module_of(name)) != "medmamba"})
    texts: dict[str, str] = {}
    for source in _followed([*(f"{_RUNTIME}.{name}" for name in ENTRIES), *external]):
        is_package = source.path.name == "__init__.py" or source.module == "medmamba.kernels"
        name = "/".join(_new_name(source.module).split(".")[1:]) + ("/__init__.py" if is_package else ".py")
        texts[name] = _rewritten(source)
    for package in {str(parent / "__init__.py") for name in texts for parent in Path(name).parents}:
        texts.setdefault(package, "")
    if external:
        names = tuple(f"{EXTERNAL}.{module}" for module in external)
        none = "MODULES: tuple[str, ...] = ()"
        assert none in texts["plugins.py"]
        texts["plugins.py"] = texts["plugins.py"].replace(none, f"MODULES: tuple[str, ...] = {names!r}")
    return texts


def _module_of(network: str) -> str:
    """The module that registers a network. Raises ConfigError for one that cannot be copied."""
    from medmamba.networks.build import network_facts

    module = network_facts(network).source
    if module == "__main__":
        raise ConfigError(
            f"Network {network!r} is registered by the program that runs, which a bundle cannot copy. Put it into a "
            f"module of its own (docs/how-to/add-a-network.md)."
        )
    return module


def _followed(modules: Iterable[str]) -> list[_Source]:
    """The modules and what they import of medmamba and of their own packages, by name."""
    found: dict[str, _Source] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        spec = find_spec(EXCHANGED.get(module, module))
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise ConfigError(f"The source of {module} is not there to copy into a bundle.")
        path = Path(spec.origin)
        found[module] = source = _Source(module, path, path.read_text(encoding="utf-8"))
        waiting += _imported(source)
    return [found[module] for module in sorted(found)]


def _imported(source: _Source) -> Iterator[str]:
    """Modules that a source imports and a bundle has to hold, without the ways into compiled code."""
    tree = ast.parse(source.text)
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            package = source.module if source.path.name == "__init__.py" else source.module.rpartition(".")[0]
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if not source.ours:
            _refuse_imports(source, node, names, at_top=id(node) in top)
        for name in names:
            wanted = name != "medmamba" and _top(name) in {"medmamba", _top(source.module)}
            if wanted and (id(node) in top or not name.startswith(COMPILED)) and _exists(name):
                yield name


def _refuse_imports(source: _Source, node: ast.AST, names: list[str], *, at_top: bool) -> None:
    """Raises ConfigError for an import of another package's source that would not work in a bundle."""
    ours = {"medmamba", _top(source.module)}
    for name in names:
        place = f"{source.path.name}, line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Import) and _top(name) in ours:
            raise ConfigError(f"{place}a bundle cannot copy `import {name}`. Write `from {name} import ...`.")
        if at_top and _top(name) not in ours | PACKAGES | sys.stdlib_module_names:
            raise ConfigError(
                f"{place}{source.module} needs {_top(name)}, which a bundle does not hold: it runs with "
                f"{', '.join(sorted(PACKAGES))} alone. Use the network by medmamba.Predictor instead."
            )


def _exists(module: str) -> bool:
    """Whether the name is a module's, and not that of something in a module (which is not imported for that)."""
    parent, _, _ = module.rpartition(".")
    try:
        package = find_spec(parent) if parent else None
    except (ImportError, AttributeError):
        return False
    if parent and (package is None or package.submodule_search_locations is None):
        return False
    return find_spec(module) is not None


def _top(module: str) -> str:
    return module.partition(".")[0]


def _new_name(module: str) -> str:
    if _top(module) != "medmamba":
        return f"{EXTERNAL}.{module}"
    return re.sub(rf"^{re.escape(_RUNTIME)}\b|^medmamba\b", "scripts", module)


def _rewritten(source: _Source) -> str:
    """A source with ``scripts`` for ``medmamba`` in its imports, and a line that says where it comes from."""
    text, own = _IMPORT.sub(r"\1scripts", source.text), _top(source.module)
    if not source.ours:
        text = re.sub(rf"^( *from ){re.escape(own)}\b", rf"\1{EXTERNAL}.{own}", text, flags=re.MULTILINE)
    # Operators that a source registers get a namespace of their own: an installed medmamba has the same names.
    text = text.replace('custom_op("medmamba::', 'custom_op("medmamba_bundle::')
    origin = "medmamba's own sources (Apache-2.0)" if source.ours else f"{source.module}, under its own licence"
    return f"# Copied by `medmamba export` from {origin}.\n{text}"
