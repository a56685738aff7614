"""The benchmark for the day with a GPU: rows are kept as they are measured, and one that fails costs no other."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from pretended_gpu import pretended_gpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/gpu.py, with little to do."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), str(ROOT / "tests" / "plans"), *sys.path])
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "SHAPES", {"small": (1, 40, 4, 2, 3)})
    monkeypatch.setattr(module, "NETWORKS", ("plain_unet",))
    monkeypatch.setattr(module, "PATCH", 16)
    monkeypatch.setattr(module, "ROUNDS", 1)
    return module


def rows_of(folder: Path) -> dict[tuple[str, str], dict]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return {(row["section"], row["name"]): row for row in rows}


def test_every_row_is_kept_when_it_was_measured_and_not_measured_again(benchmark, tmp_path, monkeypatch):
    with pretended_gpus():
        sections = ["kernels", "memory", "prediction"]
        assert benchmark.measure_all(tmp_path, sections, 1000.0) == 0
        rows = rows_of(tmp_path)
        assert [row for row in rows.values() if "failed" in row] == []
        before = (tmp_path / "rows.jsonl").read_bytes()
        monkeypatch.setattr(benchmark, "milliseconds", None)
        assert benchmark.measure_all(tmp_path, sections, 1000.0) == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert rows["kernels", "small, float32"]["error"] < 1e-5
    assert rows["kernels", "small, bfloat16"]["forward_updates_per_s"] == 1000 * 1 * 40 * 4 * 2 * 3
    assert 0 < rows["memory", "plain_unet"]["planned_gib"] < 1
    assert all(row["finite"] for (section, _), row in rows.items() if section == "prediction")
    page = (tmp_path / "gpu.md").read_text()
    assert "## kernels" in page
    assert "| small, float32 |" in page


def test_a_row_that_fails_costs_no_other_and_is_tried_again(benchmark, tmp_path, monkeypatch):
    turns = []

    def section():
        """Three rows."""

        def second():
            turns.append(1)
            if len(turns) == 1:
                raise RuntimeError("CUDA error: an illegal memory access\nmore")
            return {"ms": 2.0}

        yield "first", lambda: {"ms": 1.0}
        yield "second", second
        yield "third", lambda: {"ms": 3.0}

    monkeypatch.setattr(benchmark, "SECTIONS", {"three": section})
    assert benchmark.measure_all(tmp_path, ["three"], 1000.0) == 0
    rows = rows_of(tmp_path)
    assert rows["three", "second"]["failed"] == "RuntimeError: CUDA error: an illegal memory access"
    assert rows["three", "third"]["ms"] == 3.0
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"section": "three", "na')  # ended while it was written
    assert benchmark.measure_all(tmp_path, ["three"], -1.0) == 1  # no time left
    assert benchmark.measure_all(tmp_path, ["three"], 1000.0) == 0
    assert [row["name"] for row in benchmark.read_rows(tmp_path / "rows.jsonl")][-1] == "second"
    assert benchmark.read_rows(tmp_path / "rows.jsonl")[-1]["ms"] == 2.0


def test_results_are_compared_before_anything_is_timed(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "relative", lambda found, truth: 0.5)
    monkeypatch.setattr(benchmark, "milliseconds", None)
    with pretended_gpus():
        benchmark.measure_all(tmp_path, ["kernels"], 1000.0)
    assert {row["failed"] for row in rows_of(tmp_path).values()} == {"wrong, so not timed"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device is here")
def test_without_a_gpu_it_says_so_in_one_line(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^torch sees no GPU here: nothing to measure\.$"):
        benchmark.main()
    assert not (tmp_path / "out").exists()
