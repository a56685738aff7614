"""Accuracy against nnU-Net: the same held-out cases, the same seconds, in turn.

    python benchmarks/budget_runs.py prepare DATASET FOLDER --nnunet-python VENV/bin/python
    python benchmarks/accuracy.py FOLDER --nnunet-python VENV/bin/python --seconds 360 --seeds 1 2

For every seed nnU-Net, our planned network and the residual U-Net from the same plan train in turn, the order turning
with the seed. Held-out cases are predicted with mirroring by all, and scored by one function on the original grid.
Planning, preprocessing and prediction are not counted on any side. Results: FOLDER/accuracy.jsonl and accuracy.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from budget_runs import read_runs, run_queue

RESAMPLES = 10_000


def queue(
    ours: Sequence[dict[str, Any]], seconds: float, seeds: Sequence[int], nnunet: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every tool once for each seed, the first one changing."""
    tools = list(ours)
    tools = [{"name": "nnU-Net", **nnunet}, *tools] if nnunet else tools
    runs = []
    for turn, seed in enumerate(seeds):
        first = turn % len(tools)
        runs += [{**tool, "seconds": seconds, "seed": seed} for tool in tools[first:] + tools[:first]]
    return runs


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over cases."""
    sample = np.random.default_rng(seed).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.percentile(sample.mean(1), [2.5, 97.5])
    return float(low), float(high)


def table(runs: Sequence[dict[str, Any]], reference: str = "nnU-Net") -> str:
    """Markdown: a row per name with its seeds, and the paired difference over cases to the reference."""
    names = list(dict.fromkeys(run["name"] for run in runs))
    means: dict[str, dict[str, float]] = {}
    for name in names:
        cases = [run["cases"] for run in runs if run["name"] == name]
        means[name] = {case: float(np.nanmean([found[case] for found in cases])) for case in cases[0]}
    lines = [
        f"| trained | batch | steps | mean Dice of each seed | mean | minus {reference}, over cases |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(names, key=lambda one: -float(np.nanmean(list(means[one].values())))):
        own = [run for run in runs if run["name"] == name]
        gain = "" if name == reference or reference not in means else difference(means[name], means[reference])
        steps, dices = ", ".join(str(run["steps"]) for run in own), [run["dice"] for run in own]
        each = ", ".join(f"{dice:.4f}" for dice in dices)
        lines.append(f"| {name} | {own[0]['batch_size']} | {steps} | {each} | {np.mean(dices):.4f} | {gain} |")
    return "\n".join(lines) + "\n"


def difference(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Mean paired difference with its interval."""
    gain = [ours[case] - theirs[case] for case in ours if not np.isnan(ours[case] - theirs[case])]
    low, high = interval(gain)
    return f"{np.mean(gain):+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    """Make the queue, run it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--nnunet-python", help="Python of the environment with nnunetv2; without it ours alone are run"
    )
    parser.add_argument("--nnunet-configuration", default="3d_fullres")
    parser.add_argument("--nnunet-batch-size", type=int)
    parser.add_argument("--networks", nargs="+", default=["vm_unet", "residual_unet"])
    parser.add_argument("--configuration", help="ours; the plan's default one without it")
    parser.add_argument("--batch-size", type=int, help="ours; the plan's without it")
    parser.add_argument("--seconds", type=float, default=360.0)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu", help="see budget_runs.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    choices = parser.parse_args()
    nnunet: dict[str, Any] = {"nnunet": choices.nnunet_configuration} if choices.nnunet_python else {}
    if nnunet and choices.nnunet_batch_size is not None:
        nnunet["batch_size"] = choices.nnunet_batch_size
    ours: list[dict[str, Any]] = [{"name": name, "network": name} for name in choices.networks]
    if choices.configuration:
        ours = [{**run, "configuration": choices.configuration} for run in ours]
    if choices.batch_size is not None:
        ours = [{**run, "recipe": {"batch_size": choices.batch_size}} for run in ours]
    if choices.clock != "cpu":
        nnunet, ours = {**nnunet, "clock": choices.clock}, [{**run, "clock": choices.clock} for run in ours]
    wanted, results = choices.folder / "accuracy.queue.json", choices.folder / "accuracy.jsonl"
    wanted.write_text(json.dumps(queue(ours, choices.seconds, choices.seeds, nnunet), indent=1))
    run_queue(choices.folder, wanted, results, choices.nnunet_python)
    found = table([run for run in read_runs(results) if "error" not in run])
    (choices.folder / "accuracy.md").write_text(found)
    print(found)


if __name__ == "__main__":
    main()
