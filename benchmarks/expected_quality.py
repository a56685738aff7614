"""Expected against true quality on cases that training never saw, clean and under harms that nothing was learned from.

    python benchmarks/expected_quality.py DATASET FOLDER --minutes 5 [--network plain_unet] [--held-out 40]

The cases of --held-out patients are set aside before planning (--group-by names the patient of a case, as in `medmamba
plan`). A run is planned, its first --folds of two folds are trained, `find-best` learns, then every held-out case is
predicted as it is and under eight harms, each with --strengths of three strengths. One line per mask is kept in
FOLDER/masks.jsonl; what is there is left out when the command is given again. Unharmed cases are predicted once more
without expectations, for the seconds. The table is FOLDER/expected_quality.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba import Predictor, pipeline
from medmamba.disk.atomic import write_json
from medmamba.evaluation.dice import dice
from medmamba.evaluation.expectations import ExpectedMask, score_expectations
from medmamba.images import read_channels, read_label_map
from medmamba.images.cases import find_cases
from medmamba.model_selection.run import find_best
from medmamba.training.config import TrainConfig

Image = NDArray[np.float32]
Harm = Callable[[Image, float, np.random.Generator], Image]
STRENGTHS = (1, 2, 3)
ACCEPT, RISK = 0.7, 0.05


def spike(image: Image, strength: float, random: np.random.Generator) -> Image:
    """One bright point of k-space: waves over every plane."""
    spectrum = np.fft.fftn(image, axes=(1, 2, 3))
    place = tuple(int(random.integers(1, max(2, edge // 3))) for edge in image.shape[1:])
    spectrum[(slice(None), *place)] += (0.02 + 0.03 * strength) * np.abs(spectrum).max()
    return np.fft.ifftn(spectrum, axes=(1, 2, 3)).real.astype(np.float32)


def salt_and_pepper(image: Image, strength: float, random: np.random.Generator) -> Image:
    """Voxels at the lowest and the highest value."""
    changed, drawn = image.copy(), random.random(image.shape[1:])
    fraction = 0.03 * strength
    changed[:, drawn < fraction], changed[:, drawn > 1 - fraction] = image.min(), image.max()
    return changed


def occlusion(image: Image, strength: float, random: np.random.Generator) -> Image:
    """A box of the mean value."""
    edges = [max(1, round((0.15 + 0.15 * strength) * edge)) for edge in image.shape[1:]]
    starts = [int(random.integers(edge - part + 1)) for edge, part in zip(image.shape[1:], edges, strict=True)]
    changed = image.copy()
    changed[(slice(None), *(slice(s, s + e) for s, e in zip(starts, edges, strict=True)))] = image.mean()
    return changed


def saturation(image: Image, strength: float, random: np.random.Generator) -> Image:
    """Values clipped above a percentile."""
    return np.minimum(image, np.percentile(image, 95 - 15 * strength)).astype(np.float32)


def stripes(image: Image, strength: float, random: np.random.Generator) -> Image:
    """Every fourth row brighter."""
    changed = image.copy()
    changed[:, :, int(random.integers(4)) :: 4] += 0.5 * strength * image.std()
    return changed


def ghost(image: Image, strength: float, random: np.random.Generator) -> Image:
    """The image again, shifted by a quarter along an axis."""
    axis = 1 + int(random.integers(1, 3))
    return (image + 0.25 * strength * np.roll(image, image.shape[axis] // 4, axis)).astype(np.float32)


def steps(image: Image, strength: float, random: np.random.Generator) -> Image:
    """Slabs of different brightness along an axis."""
    axis = 1 + int(random.integers(1, 3))
    factors = 1 + 0.25 * strength * random.uniform(-1, 1, 4)
    shape = [1] * image.ndim
    shape[axis] = image.shape[axis]
    return (image * factors[np.arange(image.shape[axis]) * 4 // image.shape[axis]].reshape(shape)).astype(np.float32)


def warp(image: Image, strength: float, random: np.random.Generator) -> Image:
    """Rows shifted by a wave, as of a table that shakes; the truth stays where it was."""
    rows = image.shape[2]
    shifts = np.round(0.02 * strength * image.shape[1] * np.sin(np.arange(rows) * 2 * np.pi * 3 / rows)).astype(int)
    return np.stack([np.roll(image[:, :, row], shift, axis=1) for row, shift in enumerate(shifts)], axis=2)


HARMS: dict[str, Harm] = {
    "k-space spike": spike,
    "salt and pepper": salt_and_pepper,
    "occlusion": occlusion,
    "saturation": saturation,
    "stripes": stripes,
    "ghost": ghost,
    "steps of brightness": steps,
    "shaken rows": warp,
}


def prepare(given: argparse.Namespace) -> tuple[Path, list[str]]:
    """The run, planned with two folds on the cases of all other patients, and the ids of those held out."""
    pairs = json.loads((given.dataset / "dataset.json").read_text())
    files = {Path(pair["image"]).name.partition(".")[0]: pair for pair in pairs["training"]}
    patients: dict[str, list[str]] = {}
    for case_id in sorted(files):
        patients.setdefault(re.fullmatch(given.group_by, case_id)[1], []).append(case_id)
    order = np.random.default_rng(given.seed).permutation(sorted(patients)).tolist()[: given.patients]
    test, *halves = (
        sorted(case_id for patient in part for case_id in patients[patient])
        for part in (order[: given.held_out], order[given.held_out :][::2], order[given.held_out :][1::2])
    )
    own, run = given.folder / "dataset", given.folder / "run"
    if not (run / "plan.json").is_file():
        training = [files[case_id] for half in halves for case_id in half]
        for name in (name for pair in training for name in pair.values()):
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(given.dataset / name, own / name)
        write_json(own / "dataset.json", {**pairs, "training": training, "test": [], "numTraining": len(training)})
        splits = [{"train": halves[n], "val": halves[1 - n]} for n in (0, 1)]
        write_json(given.folder / "splits.json", splits)
        planned = {"network": given.network, "spacing": given.spacing, "group_by": given.group_by}
        pipeline.plan(own, run, splits=given.folder / "splits.json", **planned)
    return run, test


def masks_of(
    run: Path, dataset: Path, test: list[str], strengths: int, seed: int, known: set[tuple[str, str, int]]
) -> Iterator[dict[str, Any]]:
    """A line for each held-out case, harm and strength that is not ``known``: what was expected, and what is true."""
    predictor = Predictor(run, accept_dice=ACCEPT, risk=RISK)
    plain = Predictor(run)
    plain.model = replace(plain.model, expectations=None)
    labels = {name: value for name, value in predictor.plan.labels.items() if value}
    cases = {case.case_id: case for case in find_cases(dataset / "imagesTr", predictor.plan.channel_files)}
    for number, case_id in enumerate(test):
        image = read_channels(cases[case_id].paths, predictor.reading)
        (path,) = (dataset / "labelsTr").glob(f"{case_id}.*")
        truth = read_label_map(path, predictor.reading).array
        random = np.random.default_rng([seed, number])
        chosen = [sorted(random.permutation(STRENGTHS)[:strengths].tolist()) for _ in HARMS]
        wanted = [("", 0), *((kind, each) for kind, own in zip(HARMS, chosen, strict=True) for each in own)]
        for kind, strength in wanted:
            if (case_id, kind, strength) in known:
                continue
            array = np.asarray(image.array, np.float32)
            if kind:
                array = HARMS[kind](array, strength, np.random.default_rng([seed, number, list(HARMS).index(kind)]))
            seconds = {}
            if not kind:
                started = time.process_time()
                plain.predict((array, image.grid.affine))
                seconds["plain"] = round(time.process_time() - started, 3)
            started = time.process_time()
            result = predictor.predict((array, image.grid.affine))
            seconds["expecting"] = round(time.process_time() - started, 3)
            yield {
                "case": case_id,
                "harm": kind,
                "strength": strength,
                "seconds": seconds,
                "entropy": result.entropy,
                "agreement": result.agreement,
                "expected": {name: quality.as_dict() for name, quality in result.expected.items()},
                "dice": {name: dice(truth == value, result.labels == value) for name, value in labels.items()},
            }


def table(lines: list[dict[str, Any]]) -> list[str]:
    """The table of all masks, of the clean ones and of the harmed ones, with the targets."""
    groups = {"pooled": lines, "clean": [line for line in lines if not line["harm"]]}
    groups["harmed"] = [line for line in lines if line["harm"]]
    areas = "area by expected Dice, low end, entropy, random, oracle"
    sent = f"below {ACCEPT:g} sent to review | others sent"
    rows = [
        f"| masks | n | Spearman | mean error | 90 % ranges hold | mean width | {areas} | {sent} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part in groups.items():
        found = [
            (ExpectedMask(line["case"], structure, line["dice"][structure], e["dice"], e["low"], e["high"], e["level"],
                          line["entropy"], line["agreement"]), e["risk"] > RISK)
            for line in part for structure, e in line["expected"].items() if not math.isnan(line["dice"][structure])
        ]  # fmt: skip
        if not found:
            continue
        scores = score_expectations([mask for mask, _ in found])
        flags = {bad: [flag for mask, flag in found if (mask.dice < ACCEPT) is bad] for bad in (True, False)}
        shares = [f"{np.mean(own):.1%} of {len(own)}" if own else "–" for own in flags.values()]
        signals = ("expected Dice", "low end of the range", "entropy alone", "random", "oracle")
        measured = ", ".join(f"{scores.risk_area[one]:.4f}" for one in signals)
        rows.append(
            f"| {name} | {scores.masks} | {scores.spearman:.3f} | {scores.mean_error:.4f} | {scores.coverage:.1%} | "
            f"{scores.mean_width:.3f} | {measured} | {shares[0]} | {shares[1]} |"
        )
    both = [line["seconds"] for line in groups["clean"]]
    mean = {name: np.mean([seconds[name] for seconds in both]) for name in ("expecting", "plain")}
    rows.append("")
    rows.append(
        f"Processor seconds of a prediction, mean of {len(both)} cases: {mean['plain']:.2f} without, "
        f"{mean['expecting']:.2f} with expectations ({mean['expecting'] / mean['plain'] - 1:+.0%})."
    )
    by_harm = {line["harm"] or "none": None for line in lines}
    rows += ["", "| harm | masks | mean true Dice | mean expected Dice | ranges hold |", "|---|---|---|---|---|"]
    for kind in by_harm:
        pairs = [
            (line["dice"][name], e["dice"], e["low"] <= line["dice"][name] <= e["high"])
            for line in lines if (line["harm"] or "none") == kind
            for name, e in line["expected"].items() if not math.isnan(line["dice"][name])
        ]  # fmt: skip
        true, expected, held = np.array(pairs, float).T
        rows.append(f"| {kind} | {len(pairs)} | {true.mean():.3f} | {expected.mean():.3f} | {held.mean():.1%} |")
    return rows


def main() -> None:
    """Prepare, train, learn, predict, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5, help="of training, per fold")
    parser.add_argument("--network", default="auto")
    parser.add_argument("--spacing", help="of the plan, as 2,2,2: coarser images train and predict sooner")
    parser.add_argument("--folds", type=int, default=1, choices=(1, 2))
    parser.add_argument("--patients", type=int, help="use so many patients of the dataset; default: all")
    parser.add_argument("--group-by", default="(.*)", help="regular expression with the patient of a case")
    parser.add_argument("--held-out", type=int, default=40, help="patients to predict")
    parser.add_argument("--strengths", type=int, default=3, choices=STRENGTHS)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    run, test = prepare(given)
    torch.set_num_threads(1)
    for fold in range(given.folds):
        if not list(run.glob(f"models/*/fold_{fold}/checkpoints/last")):
            pipeline.train(run, TrainConfig(max_minutes=given.minutes), fold=fold)
    if not (run / "expectations.json").is_file():
        started = time.perf_counter()
        find_best(run)
        print(f"find-best: {time.perf_counter() - started:.0f} s", flush=True)
    kept = given.folder / "masks.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {(line["case"], line["harm"], line["strength"]) for line in lines}
    with kept.open("a") as file:
        for line in masks_of(run, given.dataset, test, given.strengths, given.seed, known):
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines.append(line)
    text = "\n".join(table(lines))
    (given.folder / "expected_quality.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
