"""The scripts/ folder of a bundle: our own sources, copied with what they import.

Starting from the files in ``runtime/`` the imports are followed. Every file keeps its place
(``medmamba.networks.routes`` becomes ``scripts/networks/routes.py``), except that the choice of operators, the choice
of backend and the plan's schema are exchanged for the small versions in ``runtime/``: that leaves torch, MONAI, numpy
and scipy as the only packages that a bundle needs.
"""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

from medmamba.errors import ConfigError

ENTRIES = ("network", "inferer", "transforms", "cases", "graphs", "finetune")
_RUNTIME = "medmamba.bundle.runtime"
EXCHANGED = {
    "medmamba.kernels": f"{_RUNTIME}.operators",
    "medmamba.kernels.backends": f"{_RUNTIME}.backends",
    "medmamba.plans.schema": f"{_RUNTIME}.plan",
}
COMPILED = "medmamba.kernels."
"""Imports of these inside functions are ways into compiled code that a bundle never takes."""


def bundle_sources() -> dict[str, str]:
    """Path below scripts/ to source text, every import rewritten from ``medmamba`` to ``scripts``."""
    modules: dict[str, Path] = {}
    waiting = [f"{_RUNTIME}.{name}" for name in ENTRIES]
    while waiting:
        module = waiting.pop()
        if module in modules:
            continue
        modules[module] = _file_of(EXCHANGED.get(module, module))
        text = modules[module].read_text(encoding="utf-8")
        waiting += _imported(text)
    texts: dict[str, str] = {}
    packages = set()
    for module, path in sorted(modules.items()):
        name = _new_name(module)
        is_package = path.name == "__init__.py" or module == "medmamba.kernels"
        parts = name.split(".")[1:]
        packages |= {"/".join(parts[:depth]) for depth in range(len(parts))}
        texts["/".join(parts) + ("/__init__.py" if is_package else ".py")] = _rewritten(path.read_text("utf-8"))
    for package in sorted(packages):
        texts.setdefault(f"{package}/__init__.py".lstrip("/"), "")
    return texts


def refuse_foreign_network(name: str) -> None:
    """Raises ConfigError for a network that none of our own files registers."""
    if not any(f'"{name}"' in text for text in bundle_sources().values()):
        raise ConfigError(
            f"{name} is a network of your own, whose source a bundle does not hold. Use it by medmamba.Predictor in a "
            "program that registers it, or export a network of medmamba's."
        )


def _imported(text: str) -> list[str]:
    """Modules of ours that a source imports, without the ways into compiled code."""
    tree = ast.parse(text)
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            ours = name == "medmamba" or name.startswith("medmamba.")
            if ours and (id(node) in top or not name.startswith(COMPILED)) and name != "medmamba" and _exists(name):
                found.append(name)
    return found


def _exists(module: str) -> bool:
    parent, _, _ = module.rpartition(".")
    try:
        spec = find_spec(parent)
    except (ImportError, AttributeError):
        return False
    if spec is None or spec.submodule_search_locations is None:
        return False
    return find_spec(module) is not None


def _file_of(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _new_name(module: str) -> str:
    return re.sub(rf"^{re.escape(_RUNTIME)}\b|^medmamba\b", "scripts", module)


def _rewritten(text: str) -> str:
    """The source with ``scripts`` for ``medmamba`` in every import statement at its top, and where it is copied."""
    lines = text.splitlines()
    tree = ast.parse(text)
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        lazy_kernel = id(node) not in top and COMPILED in lines[node.lineno - 1]
        if not lazy_kernel:
            line = lines[node.lineno - 1]
            line = line.replace(f"{_RUNTIME}.", "scripts.")
            lines[node.lineno - 1] = re.sub(r"\b(from|import) medmamba\b", r"\1 scripts", line)
    # Operators that a source registers get a namespace of their own: an installed medmamba has the same names.
    lines = [line.replace('custom_op("medmamba::', 'custom_op("medmamba_bundle::') for line in lines]
    header = "# Copied by `medmamba export` from medmamba's own sources (Apache-2.0)."
    return "\n".join([header, *lines]) + "\n"
