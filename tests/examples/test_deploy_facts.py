"""The deploy example: what it takes from a bundle, without its SDK."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "deploy" / "bundle_facts.py"


def bundle(folder: Path, labels: dict[str, int], channels: list[str]) -> Path:
    """The configuration of a bundle."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": "organs", "version": "1.0.0"}))
    plan = {"plan": {"channel_names": channels, "labels": labels}}
    (folder / "configs" / "inference.json").write_text(json.dumps(plan))
    return folder


def facts_of(model: Path):
    """BundleFacts of a bundle."""
    return runpy.run_path(str(SOURCE))["BundleFacts"](model)


def test_segments_of_ten_labels_and_more_are_in_the_order_of_their_numbers(tmp_path):
    labels = {"background": 0, **{f"organ {n}": n for n in (10, 11, 2, 1, 12, 3, 4, 5, 6, 7, 8, 9)}}
    facts = facts_of(bundle(tmp_path, labels, ["CT"]))
    assert list(facts.labels) == [f"organ {n}" for n in range(1, 13)]
    assert np.array_equal(facts.segment_numbers(np.arange(13)), np.arange(13))
    assert facts.modality == "CT"


def test_label_values_with_gaps_and_above_a_byte_become_segment_numbers(tmp_path):
    facts = facts_of(bundle(tmp_path, {"background": 0, "c": 1024, "a": 3, "b": 500}, ["T1"]))
    assert list(facts.labels) == ["a", "b", "c"]
    numbers = facts.segment_numbers(np.array([[0, 3], [500, 1024]], np.int32))
    assert numbers.dtype == np.uint8
    assert numbers.tolist() == [[0, 1], [2, 3]]
    assert facts.modality == "MR"


def test_a_bundle_is_found_from_its_torchscript_file_and_one_of_several_channels_is_refused(tmp_path):
    made = bundle(tmp_path / "one", {"background": 0, "a": 1}, ["T1"])
    (made / "models").mkdir()
    (made / "models" / "model.ts").touch()
    assert facts_of(made / "models" / "model.ts").folder == made
    with pytest.raises(SystemExit, match="needs several series as channels, this application reads one"):
        facts_of(bundle(tmp_path / "two", {"background": 0, "a": 1}, ["T1", "T2"]))
