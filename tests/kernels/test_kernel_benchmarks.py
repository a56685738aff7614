"""The two benchmark commands: no figures for wrong results, and none without a device."""

import importlib
import runpy
import sys

import pytest
import torch
from scan_cases import ROOT


def run(monkeypatch, name, *arguments):
    """benchmarks/NAME with these arguments, in this process."""
    script = str(ROOT / "benchmarks" / name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    return runpy.run_path(script, run_name="__main__")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device is here")
def test_the_gpu_benchmark_says_in_one_line_that_there_is_no_device(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"^No CUDA or ROCm device is visible: there is nothing to measure\.$"):
        run(monkeypatch, "kernels_gpu.py", "--json", str(tmp_path / "found.json"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["kernels_cpu.py", "kernels_gpu.py"])
def test_the_benchmarks_explain_themselves(monkeypatch, capsys, name):
    with pytest.raises(SystemExit, match=r"^0$"):
        run(monkeypatch, name, "--help")
    assert "--json" in capsys.readouterr().out


def test_no_speed_is_reported_for_wrong_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kernels_cpu = importlib.import_module("kernels_cpu")
    monkeypatch.setattr(kernels_cpu, "errors_against_float64", lambda *inputs: (1e-7, 1e-4, None))
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit, match=r"wrong by 1\.0e-07 / 1\.0e-04\. No speed is reported for wrong results"):
            kernels_cpu.run(None, 1)
    finally:
        torch.set_num_threads(threads)
