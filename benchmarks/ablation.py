"""Screening: families, widths, blocks and recipes for the same short processor time on one dataset.

    python benchmarks/budget_runs.py prepare DATASET FOLDER
    python benchmarks/ablation.py FOLDER --seconds 86 --seeds 1

The runs start from the plan in FOLDER and the recipe's defaults; each line of :func:`variants` says what it changes.
Results: FOLDER/ablation.jsonl and FOLDER/ablation.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from budget_runs import read_runs, run_queue

from medmamba.models.run_folder import RunFolder
from medmamba.networks import available_networks


def variants(widths: Sequence[int]) -> list[dict[str, Any]]:
    """The families on one plan, then changes of vm_unet; ``widths`` are the plan's."""
    wide = [widths[0], *(3 * width // 2 for width in widths[1:])]
    narrow = [3 * width // 4 for width in widths]
    blocks = [2] + [1] * (len(widths) - 1)

    def vm_unet(name: str, **changes: Any) -> dict[str, Any]:
        return {"name": f"vm_unet, {name}", "network": "vm_unet", **changes}

    return [
        *({"name": name, "network": name} for name in available_networks()),
        vm_unet("no scan", scan=False),
        vm_unet("scan from the second downsampled stage on", arguments={"blocks_per_stage": [2, 0, *blocks[2:]]}),
        vm_unet("one state", arguments={"state_size": 1}),
        vm_unet("16 states", arguments={"state_size": 16}),
        vm_unet("no residual convolutions", arguments={"conv_blocks": 0}),
        vm_unet("wider", arguments={"features_per_stage": wide}),
        vm_unet("narrower", arguments={"features_per_stage": narrow}),
        vm_unet("float32", recipe={"precision": "fp32"}),
        vm_unet("rate 1e-3", recipe={"learning_rate": 1e-3}),
        vm_unet("rate 1e-2", recipe={"learning_rate": 1e-2}),
        vm_unet("cosine", recipe={"schedule": "cosine"}),
        vm_unet("averaged weights", recipe={"ema": 0.98}),
    ]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per name, best first, with all its seeds."""
    lines = ["| trained | parameters | steps | mean Dice of each seed |", "|---|---|---|---|"]
    names = {run["name"] for run in runs}
    for name in sorted(names, key=lambda one: -np.mean([run["dice"] for run in runs if run["name"] == one])):
        own = [run for run in runs if run["name"] == name]
        steps, dices = ", ".join(str(run["steps"]) for run in own), ", ".join(f"{run['dice']:.4f}" for run in own)
        lines.append(f"| {name} | {own[0]['parameters'] / 1e6:.1f} M | {steps} | {dices} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the queue, run it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=86.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    choices = parser.parse_args()
    widths = RunFolder(choices.folder / "run").read_plan().default.network.features_per_stage
    common = {"seconds": choices.seconds, "mirror": False}
    queue = [{**run, **common, "seed": seed} for seed in choices.seeds for run in variants(widths)]
    wanted, results = choices.folder / "ablation.queue.json", choices.folder / "ablation.jsonl"
    wanted.write_text(json.dumps(queue, indent=1))
    run_queue(choices.folder, wanted, results)
    found = table([run for run in read_runs(results) if "error" not in run])
    (choices.folder / "ablation.md").write_text(found)
    print(found)


if __name__ == "__main__":
    main()
