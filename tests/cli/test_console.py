"""What the commands print cannot paint a terminal, whatever names files, labels and datasets have."""

from __future__ import annotations

import pytest

from medmamba.cli.console import console, report_error, report_warnings

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "a\rb",
    "bell\x07",
    "title\x1b]0;x\x07",
    "right\u202eleft",
    "nul\0",
    "next\x85line",
    "\udcfc",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_control_characters_of_names_are_written_out(name, capsys):
    console.print(f"{name}: 2 masks", "second line", sep="\n")
    report_error(name)
    report_warnings([name])
    said = capsys.readouterr()
    lines = said.out.splitlines() + said.err.splitlines()
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines), lines
    assert lines[1] == "second line"


def test_a_name_of_4000_letters_is_one_bounded_line(capsys):
    report_error("x" * 4000)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 1100
