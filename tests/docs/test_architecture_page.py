"""The architecture page names files that exist, with what they define, and the order in which packages import."""

from __future__ import annotations

import ast
import re

import pytest
from doc_pages import ROOT
from test_architecture import PACKAGES

PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


NAMED = sorted(set(re.findall(r"`((?:medmamba|plans|kernels|cli)/[\w/]*(?:\.py)?)(?::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=":".join)
def test_a_file_of_the_page_exists_and_defines_what_is_named(file, name):
    assert (ROOT / file).exists()
    if name:
        defined = set()
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            defined |= {getattr(target, "id", getattr(target, "name", None)) for target in targets}
        assert name in defined


def test_the_table_of_questions_names_its_files_in_full():
    assert len(NAMED) > 50
    bare = re.findall(r"`([\w/]+\.py)(?::\w+)?`", section("Where is…?"))
    assert set(bare) - {file for file, _ in NAMED} <= {"options.py"}


def test_every_package_imports_only_packages_of_rows_above_its_own():
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in section("Folders").splitlines() if "| `" in line]
    row_of = {package: number for number, packages in enumerate(rows) for package in packages}
    assert set(row_of) == set(PACKAGES) - {"medmamba"}
    upward = {(package, other) for package in row_of for other in PACKAGES[package] if row_of[other] >= row_of[package]}
    assert not upward
