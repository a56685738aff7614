"""The planner's time model against measurement: every family in 2D and 3D over a grid of patches, in two precisions.

    python benchmarks/time_model.py -o docs/benchmarks/time_model.md [--patches 32x48x32 ...] [--rounds 3]

Measured is the processor time of one thread for a whole training step as `medmamba train` does it on the CPU
(forward, loss, backward, clipping, AdamW), batch 2, one channel, three classes. All families take turns, in both
precisions; the median of the rounds is divided by how much slower than in a quiet minute a fixed piece of work runs
(cpu_clock.py). What the file's JSON twin holds is not measured again (remove a family's rows when its plan has
changed); the predictions are always made anew. A patch whose first axis is at most a quarter of the second is planned
for slices 5 mm apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from cpu_clock import slowdown
from kernels_cpu import keep_freed_memory
from memory_model import SIZES, planned, table

from medmamba.disk.atomic import write_text
from medmamba.models.output_channels import OutputChannels
from medmamba.networks.build import available_networks
from medmamba.plans.cost.machines import machine
from medmamba.plans.cost.step import step_cost
from medmamba.training.batches import Batch
from medmamba.training.config import TrainConfig
from medmamba.training.losses import DeepSupervision, SegmentationLoss
from medmamba.training.step import Stepper, make_optimizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "plans"))
from live_memory import build

FITTED = ("96x128", "32x48x32", "192x256", "16x64x64", "48x64x48")
HELD_OUT = ("160x160", "40x56x40")
"""Measured after the rates were fixed."""
WITHIN = 1.3
MACHINE_OF = {kind: machine(name) for kind, name in (("float32", "cpu-fp32"), ("bfloat16", "cpu"))}
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
"""The planner's names of the precisions, and the training's."""

REMARKS = """
## The model

`plans/cost/step.py` has the formula. Operations are counted from the plan alone: multiply-accumulates, those of
depthwise convolutions apart, state updates, the bytes kept according to the memory model, weights and layers;
`tests/plans/test_step_time.py` compares multiply-accumulates and state updates with those that `medmamba info` counts.
Six rates turn them into seconds. They are the same for every network and patch and, but for that of the
multiply-accumulates, for both precisions. The rate of the state updates is from kernels_cpu.md; the other five were
fitted and rounded, so the tables show how well six numbers describe all networks, and little about another processor.
One factor is for one operator: sampling at a learned position (deformable convolution) counts as 13
multiply-accumulates of a depthwise convolution.

Measured on two shared cores (Zen 5, AVX-512 with bf16) while three to twelve other processes ran. The correction by
the slowdown of a fixed piece of work does not remove all of their influence, so the seconds are somewhat larger than on
an idle machine: the steps in accuracy.md, augmentation included, take 0.75 to 0.9 of the prediction, and 1.2 of it for
3D patches of thick slices. On other processors the order of plans should hold, the seconds may not. No GPU was
measured: their rates (`t4` to `b200`) are from datasheets with assumed efficiencies, as their plans state.
"""


def stepper(name: str, patch: tuple[int, ...], precision: str) -> Stepper:
    """What `medmamba train` steps with."""
    network = build(planned(name, patch)[0], SIZES["in_channels"], SIZES["out_channels"])
    output_channels = OutputChannels.of_labels([str(label) for label in range(SIZES["out_channels"])])
    recipe = TrainConfig(precision=PRECISIONS[precision])  # type: ignore[arg-type]
    loss = DeepSupervision(SegmentationLoss(output_channels, batch_dice=False))
    return Stepper(network, make_optimizer(network, recipe), loss, output_channels, recipe)


def measure(patch: tuple[int, ...], names: list[str], rounds: int) -> list[dict]:
    """Seconds per step of these families in every precision on one patch, on a quiet machine."""
    size = planned("vm_unet", patch)[1]
    image = torch.randn(SIZES["batch_size"], SIZES["in_channels"], *size)
    label = torch.randint(0, SIZES["out_channels"], (SIZES["batch_size"], 1, *size))
    batch = Batch(0, image, label, ("a", "b"))
    candidates = {(name, kind): stepper(name, patch, kind) for name in names for kind in PRECISIONS}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in candidates}
    for turn in range(rounds + 1):
        slow = slowdown()
        for key, candidate in candidates.items():
            started = time.process_time()
            candidate.step(batch, 1e-4)
            if turn:  # the first one makes the optimiser's numbers and the kernels' plans
                seconds[key].append((time.process_time() - started) / slow)
    return [
        {"family": name, "patch": "x".join(map(str, size)), "precision": kind, "seconds": statistics.median(found)}
        for (name, kind), found in seconds.items()
    ]


def predicted(row: dict) -> float:
    """Seconds that the planner expects."""
    network, size = planned(row["family"], tuple(int(edge) for edge in row["patch"].split("x")))
    return step_cost(network, size, **SIZES).seconds(MACHINE_OF[row["precision"]])


def seconds_cell(row: dict) -> str:
    """The measured seconds, and predicted over measured."""
    ratio = predicted(row) / row["seconds"]
    return f"{row['seconds']:.2f} s, {ratio:.2f}{'' if 1 / WITHIN <= ratio <= WITHIN else ' **out**'}"


def rank_correlation(rows: list[dict]) -> float:
    """Spearman's, of predicted and measured seconds."""
    ranks = [
        np.argsort(np.argsort(values)) for values in zip(*((predicted(r), r["seconds"]) for r in rows), strict=True)
    ]
    return float(np.corrcoef(*ranks)[0, 1])


def page(rows: list[dict]) -> str:
    """The document around the tables."""
    ratios = [predicted(row) / row["seconds"] for row in rows]
    inside = sum(1 / WITHIN <= ratio <= WITHIN for ratio in ratios)
    new = [predicted(row) / row["seconds"] for row in rows if row["patch"] in HELD_OUT]
    text = (
        "# Time model\n\n"
        "Shows how far the planner's step time is from the measured one on one processor; it does not show\n"
        "how well the model holds on another, or on a GPU.\n"
        "\n"
        "Processor seconds of one training step on one thread (forward, loss, backward, clipping, AdamW; batch 2, one\n"
        "channel, three classes, deep supervision), and the planner's prediction over it. Wanted: within 30 % for\n"
        "each, and the right order.\n\n"
        "```sh\npython benchmarks/time_model.py -o docs/benchmarks/time_model.md\n```\n\n"
        f"{inside} of {len(rows)} are within a factor of {WITHIN}; predicted over measured is {min(ratios):.2f} to "
        f"{max(ratios):.2f}, its median {statistics.median(ratios):.2f}. The\n"
        f"rates were fitted to the patches {', '.join(FITTED)}; on those measured\n"
        f"afterwards ({', '.join(HELD_OUT)}) it is {min(new):.2f} to {max(new):.2f}.\n"
    )
    for kind, found in MACHINE_OF.items():
        of_kind = [row for row in rows if row["precision"] == kind]
        text += (
            f"\n## {kind}, machine `{found.name}`\n\n{table(of_kind, seconds_cell)}\n\n"
            f"Rank correlation of predicted and measured over all cells: {rank_correlation(of_kind):.3f}.\n"
        )
    return text + REMARKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--patches", nargs="*", default=FITTED + HELD_OUT)
    parser.add_argument("--rounds", type=int, default=3)
    choices = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    stored = choices.output.with_suffix(".json")
    rows = json.loads(stored.read_text()) if stored.is_file() else []
    for text in choices.patches:
        done = {row["family"] for row in rows if row["patch"] == text}
        missing = [name for name in available_networks() if name not in done]
        if not missing:
            continue
        rows += measure(tuple(int(edge) for edge in text.split("x")), missing, choices.rounds)
        write_text(stored, json.dumps(rows, indent=1) + "\n")
        print(text, flush=True)
    write_text(choices.output, page(rows))


if __name__ == "__main__":
    main()
