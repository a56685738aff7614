"""Tables of text fit the terminal, and no number is cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmamba.plans.text_table import aligned

HEAD = ("structure", "Dice", "HD95 (mm)", "NSD", "sensitivity", "volume bias (fraction)", "lesion sensitivity")
LONG = "left_superior_pulmonary_vein_of_the_heart"
ROWS = [
    HEAD,
    (
        "Anterior",
        "0.4545 [0.4072, 0.4943]",
        "20.4 [19.3, 21.4]",
        "–",
        "0.5344 [0.4786, 0.5884]",
        "0.1",
        "1 +2 infinite",
    ),
    (LONG, "0.9545 [0.9072, 0.9943]", "2.5 [1.3, 3.4]", "0.3 [0.2, 0.4]", "1.0000", "–0.2", "1.0"),
]


def test_a_table_that_fits_is_as_wide_as_its_cells():
    assert aligned([("case", "Dice"), ("a", "0.9")]) == aligned([("case", "Dice"), ("a", "0.9")], 80)
    assert aligned([("case", "Dice"), ("a", "0.9")]) == ["case  Dice", "a     0.9"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_a_wide_table_is_broken_between_numbers_and_continued_below(width):
    lines = aligned(ROWS, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in ROWS[1:]:
        for number in re.findall(r"\[[^]]*\]|[\d.]+", " ".join(row[1:])):
            assert number in text
    blocks = text.split("\n\n")
    assert all(block.startswith("structure") for block in blocks)
    assert all(sum("Anterior" in line for line in block.splitlines()) == 1 for block in blocks)


def test_names_are_shortened_in_the_middle_and_only_if_they_must():
    assert any(line.startswith("left_superior…of_the_heart  ") for line in aligned(ROWS, 80))
    assert any(LONG in line for line in aligned(ROWS, 200))


def test_numbers_that_belong_together_stay_in_one_line():
    lines = aligned([("case", "size", "change"), ("a" * 30, "35 x 51 x 36", "0.1 to 0.2")], 44)
    assert any("35 x 51 x 36" in line for line in lines)
    assert any("to 0.2" in line for line in lines)


@given(
    st.lists(st.lists(st.text("ab 1.[]/x", max_size=12), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(36, 100),
)
def test_any_table_fits(rows, width):
    lines = aligned(rows, width)
    assert max(map(len, lines)) <= width
    kept = sorted("".join(rows[0] + [cell for row in rows[1:] for cell in row[1:]]).replace(" ", ""))
    assert not set(kept) - set("".join(lines))
