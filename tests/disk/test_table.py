"""CSV tables: no cell is a formula, numbers stay numbers, and our own reader gives back what was written."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmamba.datasets.table import read_csv
from medmamba.disk.table import read_cell, table_text, write_table
from medmamba.training.progress import EpochMetrics, write_metrics

FORMULAS = ["=1+1", "+cmd|'/C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", '=HYPERLINK("http://x","y")']


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_text_is_a_formula(tmp_path, text):
    write_table(tmp_path / "t.csv", ["case", text], [[text, -1.5], ["plain", text]])
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["case", f"'{text}"], [f"'{text}", "-1.5"], ["plain", f"'{text}"]]
    assert read_csv(tmp_path / "t.csv", "t.csv") == [["case", text], [text, "-1.5"], ["plain", text]]


@pytest.mark.parametrize("number", [-1, -0.25, "-1.23e-05", "+3", "-inf", "nan", "-.5", None, True, 0])
def test_numbers_are_left_alone(number):
    assert table_text(["x", "y"], [[number, 1]]) == f"x,y\n{'' if number is None else number},1\n"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_any_text_comes_back(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    write_table(path, ["a", "b"], [["x", cell] for cell in cells])
    assert read_csv(path, "any.csv")[1:] == [["x", cell] for cell in cells]


@pytest.mark.parametrize("text", ["'", "''", "'a", "O'Neil", "-", "a=1", ""])
def test_cells_of_others_are_read_as_they_are(text):
    assert read_cell(text) == text


def test_names_of_classes_are_no_formulas_in_the_table_of_epochs(tmp_path):
    facts = {"train_dice": None, "validation_dice": None, "learning_rate": 0.1, "steps_per_second": 1.0}
    facts |= {"waiting_for_data": 0.0, "skipped_steps": 0, "seconds": 1.0}
    write_metrics(tmp_path, [EpochMetrics(1, 10, loss=-0.5, **facts, by_name={"=1+1": 0.5, "liver": 0.25})])
    head, row = (tmp_path / "metrics.csv").read_text().splitlines()
    assert head.endswith(",'=1+1,liver")
    assert row.startswith("1,10,")
    assert row.endswith(",0.5,0.25")
    assert ",-0.5," in row
