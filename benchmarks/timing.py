"""Timing on a machine that is shared with others: candidates take turns, medians of CPU time are compared."""

from __future__ import annotations

import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


# A candidate keeps its turn at least this long, so that the first call after another candidate, with cold caches, does
# not decide over calls of a few hundred microseconds.
TURN_SECONDS = 0.02


def alternate(
    candidates: dict[str, Callable[[], object]],
    rounds: int = 8,
    warmup: int = 2,
    clock: Callable[[], float] = time.process_time,
    slow_seconds: float = 2.0,
) -> dict[str, tuple[float, float]]:
    """Median and minimum seconds per call of each candidate over rounds in which each has one turn.

    A candidate that takes longer than `slow_seconds` is run twice in all.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, run in candidates.items():
            if turn > 1 and min(times[name]) > slow_seconds:
                continue
            times[name].append(_seconds_per_call(run, clock))
    kept = {name: values[warmup:] or values for name, values in times.items()}
    return {name: (statistics.median(values), min(values)) for name, values in kept.items()}


def _seconds_per_call(run: Callable[[], object], clock: Callable[[], float]) -> float:
    gc.disable()  # as timeit does: a collection in the middle belongs to nobody
    start, calls = clock(), 0
    while calls == 0 or clock() - start < TURN_SECONDS:
        run()
        calls += 1
    seconds = (clock() - start) / calls
    gc.enable()
    return seconds


def machine() -> dict[str, str]:
    """Hardware, versions and commit, to be printed with every table."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=False)
    return {
        "processor": model,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": compiler.stdout.splitlines()[0] if compiler.stdout else "unknown",
        "commit": git.stdout.strip() or "unknown",
    }
