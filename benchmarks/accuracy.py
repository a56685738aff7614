"""Accuracy against nnU-Net: the same held-out cases, the same minutes on the same cores, one after the other.

    python benchmarks/accuracy.py DATASET --nnunet-python VENV/bin/python --minutes 10 --seeds 1 2 -o OUT

A fifth of the cases (whole patients with --group-by) is held out before anything is planned. For every seed both tools
train in turn, the order changing from seed to seed, so that a busy machine hurts both alike; planning and preprocessing
are not counted on either side. Held-out cases are predicted with mirroring by both, and scored by one function on the
original grid. The result is OUT/accuracy.json and OUT/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmamba import pipeline
from medmamba.atomic import write_json, write_text
from medmamba.datasets import DatasetSpec, convert_dataset, read_dataset
from medmamba.plans.folds import groups_by_pattern
from medmamba.training.config import TrainConfig

HELD_OUT_SHARE = 0.2
SPLIT_SEED = 20
RESAMPLES = 10_000
DATASET_ID = 901
TIMED = Path(__file__).with_name("nnunet_timed.py")


def held_out(spec: DatasetSpec, pattern: str | None, seed: int = SPLIT_SEED) -> list[str]:
    """Ids of a fifth of the training cases; cases of one group stay together."""
    ids = sorted(case.case_id for case in spec.cases)
    groups = groups_by_pattern(ids, pattern) if pattern else {name: name for name in ids}
    names = sorted(set(groups.values()))
    count = max(1, round(HELD_OUT_SHARE * len(names)))
    chosen = set(np.random.default_rng(seed).choice(names, count, replace=False).tolist())
    return [name for name in ids if groups[name] in chosen]


def split_dataset(dataset: Path, folder: Path, test: Sequence[str]) -> None:
    """nnU-Net's layout with the held-out cases apart: training in nnUNet_raw, test images and truths beside."""
    raw = folder / "nnUNet_raw" / f"Dataset{DATASET_ID}_benchmark"
    convert_dataset(dataset, raw, "nnunet")
    for name in ("test_images", "test_truths"):
        (folder / name).mkdir(parents=True)
    for case_id in test:
        for path in sorted((raw / "imagesTr").glob(f"{case_id}_[0-9][0-9][0-9][0-9].*")):
            shutil.move(path, folder / "test_images" / path.name)
        for path in sorted((raw / "labelsTr").glob(f"{case_id}.*")):
            shutil.move(path, folder / "test_truths" / path.name)
    facts = json.loads((raw / "dataset.json").read_text())
    facts["numTraining"] -= len(test)
    write_json(raw / "dataset.json", facts)


def run_ours(folder: Path, minutes: float, seed: int, configuration: str | None, network: str | None) -> dict:
    """Train on all remaining cases, predict the held-out ones."""
    run, masks = folder / "run", folder / f"ours_{seed}"
    config = TrainConfig(max_minutes=minutes, seed=seed)
    result = pipeline.train(run, fold="all", configuration=configuration, network=network, config=config, restart=True)
    started = time.monotonic()
    pipeline.predict(run, folder / "test_images", masks, configuration=configuration)
    facts = {"steps": result.steps, "waiting": result.waiting, "peak_memory_gib": result.peak_memory_gib}
    return {**score(masks, folder), **facts, "predict_seconds": time.monotonic() - started}


def run_nnunet(
    folder: Path, python: str, minutes: float, seed: int, configuration: str, batch_size: int | None
) -> dict:
    """The same with nnU-Net, in its own environment."""
    masks = folder / f"nnunet_{seed}"
    extra = [] if batch_size is None else [str(batch_size)]
    printed = call_nnunet(folder, python, "train", configuration, str(minutes), str(seed), *extra)
    facts = json.loads(printed.strip().splitlines()[-1])
    started = time.monotonic()
    call_nnunet(folder, python, "predict", configuration, str(folder / "test_images"), str(masks))
    return {**score(masks, folder), "steps": facts["steps"], "predict_seconds": time.monotonic() - started}


def call_nnunet(folder: Path, python: str, verb: str, *arguments: str) -> str:
    """Run nnunet_timed.py with nnU-Net's Python; returns what it printed."""
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    command = [python, str(TIMED), verb, str(DATASET_ID), *arguments]
    environment = {**os.environ, **folders, "nnUNet_compile": "false", "nnUNet_n_proc_DA": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nnU-Net failed ({verb}):\n{done.stderr[-3000:]}")
    return done.stdout


def score(masks: Path, folder: Path) -> dict:
    """Mean foreground Dice of every held-out case."""
    evaluation = pipeline.evaluate(masks, folder / "test_truths", output=masks)
    return {"cases": evaluation.mean_per_case(), "mean": evaluation.mean_foreground}


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over cases."""
    sample = np.random.default_rng(seed).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.percentile(sample.mean(1), [2.5, 97.5])
    return float(low), float(high)


def table(results: dict) -> str:
    """Markdown: a row per tool and seed, and the paired difference over cases."""
    lines = [
        f"{results['dataset']}: {len(results['test'])} held-out cases, {results['minutes']:g} minutes each, "
        f"{results['cores']} cores",
        "",
        "| tool | seed | steps | mean Dice | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for run in results["runs"]:
        low, high = interval(list(run["cases"].values()))
        lines.append(
            f"| {run['tool']} | {run['seed']} | {run['steps']} | {run['mean']:.4f} | {low:.4f} to {high:.4f} |"
        )
    means = {
        tool: {
            case: np.mean([run["cases"][case] for run in results["runs"] if run["tool"] == tool])
            for case in results["test"]
        }
        for tool in ("medmamba", "nnU-Net")
        if any(run["tool"] == tool for run in results["runs"])
    }
    if len(means) == 2:
        gain = [float(means["medmamba"][case] - means["nnU-Net"][case]) for case in results["test"]]
        low, high = interval(gain)
        lines += [
            "",
            f"medmamba minus nnU-Net over cases: {np.mean(gain):+.4f} (95 % interval {low:+.4f} to {high:+.4f})",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, prepare both sides once, run in turn, write after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--nnunet-python", help="Python of the environment with nnunetv2; without it ours alone is run")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--group-by", help="regular expression for the patient in a case id")
    parser.add_argument("--configuration", help="ours; default: the plan's")
    parser.add_argument("--network", default="vm_unet")
    parser.add_argument("--nnunet-configuration", default="3d_fullres")
    parser.add_argument("--nnunet-batch-size", type=int)
    choices = parser.parse_args()
    folder = choices.output
    spec = read_dataset(choices.dataset)
    test = held_out(spec, choices.group_by)
    results = {
        "dataset": spec.name,
        "minutes": choices.minutes,
        "cores": os.cpu_count(),
        "test": test,
        "network": choices.network,
        "runs": [],
    }
    split_dataset(choices.dataset, folder, test)
    pipeline.plan(folder / "nnUNet_raw" / f"Dataset{DATASET_ID}_benchmark", folder / "run", network=choices.network)
    if choices.nnunet_python:
        call_nnunet(folder, choices.nnunet_python, "prepare")
    for turn, seed in enumerate(choices.seeds):
        tools = ["medmamba", "nnU-Net"] if choices.nnunet_python else ["medmamba"]
        for tool in tools if turn % 2 == 0 else tools[::-1]:
            if tool == "medmamba":
                found = run_ours(folder, choices.minutes, seed, choices.configuration, None)
            else:
                found = run_nnunet(
                    folder,
                    choices.nnunet_python,
                    choices.minutes,
                    seed,
                    choices.nnunet_configuration,
                    choices.nnunet_batch_size,
                )
            results["runs"].append({"tool": tool, "seed": seed, **found})
            write_json(folder / "accuracy.json", results)
            write_text(folder / "accuracy.md", table(results))
            print(table(results))


if __name__ == "__main__":
    main()
