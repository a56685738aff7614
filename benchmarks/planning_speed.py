"""Fingerprint, plan and preprocessing against nnU-Net: the same cases, the same cores, in alternating runs.

    python benchmarks/planning_speed.py DATASET --nnunet-python VENV/bin/python --runs 3 --workers 2 -o OUT

Both tools start as commands of their own, so their imports count on both sides. nnU-Net extracts the fingerprint, plans
and preprocesses 3d_fullres with as many processes as ours has workers; its check of the dataset is off (its default),
ours always runs. Ours also counts components, looks for copies, makes folds and preprocesses the same configuration.
Reported are the wall time, which a busy machine distorts, and the processor time of the tool and its children, which it
distorts less. The result is OUT/planning.json and a table on the screen.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medmamba.datasets import convert_dataset
from medmamba.disk.atomic import write_json

DATASET_ID = 902
NNUNET = """
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
if __name__ == "__main__":
    extract_fingerprints([{number}], num_processes={workers}, check_dataset_integrity=False)
    plan_experiments([{number}])
    preprocess([{number}], configurations=["3d_fullres"], num_processes=[{workers}])
"""
ENTRY = "from medmamba.cli.main import run; run()"


def timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of a command and its children; ends the program when it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-3000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_ours(dataset: Path, folder: Path, workers: int) -> tuple[float, float]:
    """``medmamba plan`` of the dataset into a fresh folder."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "-c", ENTRY, "plan", str(dataset), "-o", str(folder / "run"), "--workers", str(workers)]
    return timed([*command, "--configurations", "3d_fullres"], {**os.environ, "OMP_NUM_THREADS": "1"})


def run_nnunet(folder: Path, python: str, workers: int) -> tuple[float, float]:
    """nnU-Net's three steps into fresh folders."""
    shutil.rmtree(folder / "nnUNet_preprocessed", ignore_errors=True)
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    script = folder / "nnunet_steps.py"
    script.write_text(NNUNET.format(number=DATASET_ID, workers=workers))
    return timed([python, str(script)], {**os.environ, **folders, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--nnunet-python", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    choices = parser.parse_args()
    folder = choices.output
    raw = folder / "nnUNet_raw" / f"Dataset{DATASET_ID}_speed"
    if not raw.is_dir():
        convert_dataset(choices.dataset, raw, "nnunet")
    rows: dict[str, list[tuple[float, float]]] = {"medmamba": [], "nnU-Net": []}
    for number in range(choices.runs):
        order = list(rows) if number % 2 == 0 else list(rows)[::-1]
        for name in order:
            if name == "medmamba":
                found = run_ours(raw, folder, choices.workers)
            else:
                found = run_nnunet(folder, choices.nnunet_python, choices.workers)
            rows[name].append(found)
            print(f"{name:10s} wall {found[0]:7.1f} s   processor {found[1]:7.1f} s", flush=True)
    middle = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in rows.items()}
    ratios = [theirs / ours for theirs, ours in zip(middle["nnU-Net"], middle["medmamba"], strict=True)]
    print(f"medians: nnU-Net takes {ratios[0]:.1f} times the wall time and {ratios[1]:.1f} times the processor time")
    write_json(
        folder / "planning.json",
        {
            "dataset": choices.dataset.name,
            "workers": choices.workers,
            "processor": platform.processor() or platform.machine(),
            "runs": {
                name: [{"wall_s": wall, "processor_s": cpu} for wall, cpu in found] for name, found in rows.items()
            },
            "ratio": {"wall": ratios[0], "processor": ratios[1]},
        },
    )


if __name__ == "__main__":
    main()
