"""The page on own code names files that exist, with their sizes."""

import re

from doc_pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "own-code.md"
NAMED = re.findall(r"`([\w/]+\.py)` \((\d+)\)", PAGE.read_text(encoding="utf-8"))


def test_the_sizes_of_own_code_are_those_of_the_files():
    assert len(NAMED) > 20
    wrong = {}
    for name, lines in NAMED:
        found = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        if abs(found - int(lines)) > 0.3 * found:
            wrong[name] = (int(lines), found)
    assert not wrong, "lines on the page, and in the file"
