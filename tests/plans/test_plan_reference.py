"""nnU-Net's decisions are reproduced exactly, and the comparison command can tell when they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnunet_decisions import differences, equal, main
from planning_cases import CASES, DATASETS, read


@pytest.mark.parametrize("name", [*DATASETS, "function_cases"])
def test_every_decision_equals_the_reference(name: str) -> None:
    count, lines = differences(read(name))
    assert count > 30
    assert lines == []


def test_all_eighteen_cases_are_there() -> None:
    assert len(DATASETS) == 18
    assert sum(len(read(name)["expected"]["variants"]) for name in DATASETS) == 72


def test_the_command_prints_differences_and_returns_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = read("mr_hippocampus_tiny")
    case["expected"]["variants"][0]["configurations"]["2d"]["batch_size"] += 1
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(case))
    assert main([str(CASES / "ct_lung.json")]) == 0
    assert main([str(changed)]) == 1
    assert "default 8 GB: 2d.batch_size: ours 355, expected 356" in capsys.readouterr().out


def test_the_command_returns_two_for_a_file_that_is_no_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert main([str(broken)]) == 2
    assert main([str(tmp_path / "absent.json")]) == 2
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "broken.json: cannot be read as JSON" in lines[0]
    assert "absent.json: no such file" in lines[1]


def test_a_missing_field_of_a_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = read("ct_lung")
    del case["fingerprint"]["spacings"]
    file = tmp_path / "case.json"
    file.write_text(json.dumps(case))
    assert main([str(file)]) == 2
    assert "'spacings' is missing" in capsys.readouterr().err


def test_integers_must_be_equal_and_spacings_to_a_billionth() -> None:
    assert equal([1.0, 2.0 + 1e-10], [1.0, 2.0])
    assert not equal([1.0, 2.0 + 1e-8], [1.0, 2.0])
    assert not equal(3, 2)
    assert not equal(True, 1)
    assert not equal([1], [1, 2])
