"""Five labelled cases: training from scratch against training from a network pretrained on images without labels.

    python benchmarks/few_labels.py DATASET FOLDER --seeds 1 2 3 4 [--pretraining-steps 450] [--steps 160]

A fifth of the cases is held out before anything else, the same for every seed (budget_runs.py). Each seed draws its own
five labelled cases from the rest and plans on them alone. One network is pretrained, in the run of the first seed, on
the images of all the rest; then for every seed both starts train the same number of steps and score the held-out
cases, without mirroring. One thread. Finished runs are kept in FOLDER/few_labels.jsonl and left out when the command is
given again; the table is FOLDER/few_labels.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from budget_runs import DATASET_ID, held_out, read_runs, score, split_dataset

from medmamba import pipeline
from medmamba.datasets import read_dataset
from medmamba.disk.atomic import write_json
from medmamba.training.config import TrainConfig
from medmamba.training.pretrain import pretrain

STARTS = ("scratch", "pretrained")
STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantile of Student's t by degrees of freedom: one less than there are pairs."""


def prepare(raw: Path, folder: Path, labelled: int, seed: int) -> None:
    """``folder``/dataset with a draw of labelled cases, ``folder``/unlabelled with the images of all others."""
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").glob("*.nii.gz"))
    chosen = np.random.default_rng(seed).choice(ids, labelled, replace=False).tolist()
    for name in ("dataset/imagesTr", "dataset/labelsTr", "unlabelled"):
        (folder / name).mkdir(parents=True)
    for path in sorted((raw / "imagesTr").iterdir()):
        own = any(path.name.startswith(f"{case_id}_0") for case_id in chosen)
        shutil.copy(path, folder / ("dataset/imagesTr" if own else "unlabelled") / path.name)
    for case_id in chosen:
        shutil.copy(raw / "labelsTr" / f"{case_id}.nii.gz", folder / "dataset" / "labelsTr")
    facts = json.loads((raw / "dataset.json").read_text())
    write_json(folder / "dataset" / "dataset.json", {**facts, "numTraining": labelled})
    pipeline.plan(folder / "dataset", folder / "run")


def pretrain_once(folder: Path, steps: int, seed: int) -> Path:
    """The pretrained model of a run; what it cost lies beside it."""
    run = folder / "run"
    costs = run / "pretrained" / "cost.json"
    if not costs.is_file():
        cpu = time.process_time()
        recipe = TrainConfig(steps=steps, seed=seed, workers=0)
        found = pretrain(run, images=folder / "unlabelled", config=recipe, restart=True)
        facts = {"model": str(found.folder), "steps": found.steps, "loss": found.final_loss}
        write_json(costs, {**facts, "cpu_seconds": time.process_time() - cpu})
        print("pretraining", costs.read_text(), flush=True)
    return Path(json.loads(costs.read_text())["model"])


def run_one(folder: Path, truths: Path, init: Path | None, seed: int, steps: int) -> dict[str, Any]:
    """Train from one start and score the held-out cases."""
    run, cpu = folder / "run", time.process_time()
    config = TrainConfig(steps=steps, seed=seed, workers=0)
    result = pipeline.train(run, fold="all", config=config, init=init, restart=True)
    spent = time.process_time() - cpu
    masks = folder / ("masks_scratch" if init is None else "masks_pretrained")
    pipeline.predict(run, truths / "test_images", masks, mirror=False)
    facts = {"seed": seed, "steps": steps, "cpu_seconds": spent, "final_loss": result.final_loss}
    labelled = sorted(path.name for path in (folder / "dataset" / "labelsTr").iterdir())
    return {**facts, "labelled": labelled, **score(masks, truths)}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a seed, and the mean difference with its interval over seeds."""
    by_start = {start: {run["seed"]: run for run in runs if run["start"] == start} for start in STARTS}
    seeds = sorted(set(by_start["scratch"]) & set(by_start["pretrained"]))
    lines = ["| seed | from scratch | pretrained | difference | held-out cases that gain |", "|---|---|---|---|---|"]
    pairs = [[by_start[start][seed]["dice"] for start in STARTS] for seed in seeds]
    for seed, (scratch, with_start) in zip(seeds, pairs, strict=True):
        before, after = (by_start[start][seed]["cases"] for start in STARTS)
        gaining = f"{sum(after[case] > before[case] for case in before)} of {len(before)}"
        lines.append(f"| {seed} | {scratch:.4f} | {with_start:.4f} | {with_start - scratch:+.4f} | {gaining} |")
    gains = [with_start - scratch for scratch, with_start in pairs]
    if len(gains) > 2:
        half = STUDENT[len(gains) - 1] * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
        low, high = np.mean(gains) - half, np.mean(gains) + half
        means = " | ".join(f"{np.mean([pair[index] for pair in pairs]):.4f}" for index in range(2))
        lines.append(
            f"| mean | {means} | {np.mean(gains):+.4f} (95 % by Student's t over seeds: {low:+.4f} to {high:+.4f}) | |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prepare what is missing, run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--labelled", type=int, default=5)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--pretraining-steps", type=int, default=450)
    choices = parser.parse_args()
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    folder, results = choices.folder, choices.folder / "few_labels.jsonl"
    if not (folder / "nnUNet_raw").is_dir():
        split_dataset(choices.dataset, folder, held_out(read_dataset(choices.dataset), None))
    raw = folder / "nnUNet_raw" / f"Dataset{DATASET_ID}_benchmark"
    for seed in choices.seeds:
        own = folder / f"seed_{seed}"
        if not own.is_dir():
            prepare(raw, own, choices.labelled, seed)
        for start in STARTS:
            if any((run["start"], run["seed"]) == (start, seed) for run in read_runs(results)):
                continue
            init = None
            if start == "pretrained":
                first = choices.seeds[0]
                init = pretrain_once(folder / f"seed_{first}", choices.pretraining_steps, first)
            found = {"start": start, **run_one(own, folder, init, seed, choices.steps)}
            with results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(f"seed {seed}, {start}: {found['dice']:.4f} in {found['cpu_seconds']:.0f} s", flush=True)
    (folder / "few_labels.md").write_text(table(read_runs(results)))
    print((folder / "few_labels.md").read_text())


if __name__ == "__main__":
    main()
