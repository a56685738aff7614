"""The sources that a bundle holds: complete, and with torch, numpy, MONAI and scipy as their only packages."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from medmamba.bundle.sources import bundle_sources

RUNTIME = Path(__file__).resolve().parents[2] / "medmamba" / "bundle" / "runtime"
PACKAGES = {"torch", "numpy", "monai", "scipy"}
INSTALLED = {"medmamba", "triton", "mamba_ssm", "torch_xla"}
"""Used where they are installed: the imports stand in functions or are tried."""
SOURCES = bundle_sources()


def imports(text: str, *, at_the_top: bool) -> set[str]:
    """First names of what a source imports; ``at_the_top``: when it is imported itself."""
    tree = ast.parse(text)
    nodes = tree.body if at_the_top else list(ast.walk(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in found} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(RUNTIME.glob("*.py")), ids=lambda path: path.name)
def test_a_runtime_file_says_that_it_is_shipped(path):
    assert path.read_text(encoding="utf-8").startswith('"""Shipped in bundles')


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_shipped_file_needs_no_other_packages(name):
    text = SOURCES[name]
    assert imports(text, at_the_top=True) <= {*PACKAGES, "scripts"}
    assert imports(text, at_the_top=False) <= {*PACKAGES, "scripts", *INSTALLED}


def test_every_import_of_a_shipped_file_is_shipped():
    modules = {"scripts." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in SOURCES}
    for name, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts."):
                assert node.module in modules, f"{name}: {node.module}"
