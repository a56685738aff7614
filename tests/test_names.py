"""A class name means one thing: no two modules of the package define a class of the same name."""

from __future__ import annotations

import ast
from collections import defaultdict

from test_architecture import FILES, ROOT


def classes() -> dict[str, list[str]]:
    """Public class names, and the modules that define them."""
    found = defaultdict(list)
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(module)
    return found


def test_no_class_name_is_used_twice():
    assert {name: modules for name, modules in classes().items() if len(modules) > 1} == {}


def test_no_two_test_files_share_a_name():
    """pytest collects files of folders without ``__init__.py`` under their bare names."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
