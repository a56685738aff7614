"""`medmamba find-best`: what cross-validation says about configurations, ensembles, cleaning and probabilities.

Everything is measured on the plan's grid, on validation cases, each predicted by the one fold that has not seen it.
Folds that are not trained are left out. What wins is written to RUN/best.json, and predict uses it from then on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.atomic import write_text
from medmamba.device import choose_device
from medmamba.errors import InputError
from medmamba.evaluation.dice import dice, dice_per_label
from medmamba.inference.cascade import one_hot
from medmamba.inference.cleaning import clean_one
from medmamba.inference.member import Member
from medmamba.inference.postprocess import RECIPE, Cleaning, Recipe
from medmamba.inference.sliding_window import Window, stream_logits
from medmamba.model import previous_labels
from medmamba.preprocessing.labels import label_names
from medmamba.preprocessing.resample import interpolate_linear
from medmamba.preprocessing.store import CaseReader, stored_cases
from medmamba.run_folder import RunFolder

TEMPERATURES = np.geomspace(0.5, 4.0, 25)
SAMPLED_VOXELS = 4000
"""Voxels per case that the temperature is fitted to."""
SMALLEST_GAIN = 1e-4
"""Dice that a cleaning step must gain to be worth having."""


@dataclass
class _Validated:
    """What one candidate said about one case: label map, truth and the volume of a voxel."""

    labels: NDArray[np.int16]
    truth: NDArray[np.int16]
    voxel_mm3: float | None


@dataclass
class _Candidate:
    cases: dict[str, _Validated] = field(default_factory=dict)
    logits: list[torch.Tensor] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)

    def mean_dice(self, count: int) -> float:
        means = [self.label_dice(index) for index in range(1, count)]
        known = [value for value in means if not math.isnan(value)]
        return fmean(known) if known else math.nan

    def label_dice(self, index: int) -> float:
        scores = [dice_per_label(case.truth, case.labels, [index])[index] for case in self.cases.values()]
        known = [score for score in scores if not math.isnan(score)]
        return fmean(known) if known else math.nan


def find_best(
    run: str | Path,
    *,
    device: str = "auto",
    mirror: bool = True,
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Recipe:
    """Choose configurations, cleaning steps and temperature on cross-validation, and store the recipe in the run.

    Raises InputError when no fold with validation cases is trained.
    """
    folder = RunFolder(Path(run))
    plan = folder.read_plan()
    if plan.regions is not None:
        raise InputError(f"{run}: its heads are independent regions, which find-best cannot compare yet. Use predict.")
    splits = folder.read_splits()
    folds = _trained(folder, list(plan.configurations), len(splits))
    shared = sorted(set.intersection(*(set(found) for found in folds.values()))) if folds else []
    if not shared:
        raise InputError(
            f"{run}: no fold of the cross-validation is trained with its cases preprocessed. Run `medmamba train {run} "
            "--fold 0`, and as many other folds as you can."
        )
    single: dict[str, _Candidate] = {name: _Candidate() for name in folds}
    pairs = {names: _Candidate() for names in combinations(folds, 2)}
    total, done = sum(len(splits[fold]["val"]) for fold in shared), 0
    for fold in shared:
        members = {name: _member(name, folds[name][fold], device, mirror) for name in folds}
        readers = {name: stored_cases(folder.preprocessed(name)) for name in folds}
        for case_id in splits[fold]["val"]:
            on_item("validate", done, total)
            chances = {name: _validate(members[name], readers[name][case_id], single[name]) for name in folds}
            for (first, second), candidate in pairs.items():
                joint = chances[first] + _onto(chances[second], chances[first].shape[1:])
                kept = single[first].cases[case_id]
                labels = joint.argmax(0).numpy().astype(np.int16)
                candidate.cases[case_id] = _Validated(labels, kept.truth, kept.voxel_mm3)
            done += 1
    on_item("validate", total, total)
    candidates = {(name,): candidate for name, candidate in single.items()} | pairs
    dices = {names: candidate.mean_dice(len(plan.labels)) for names, candidate in candidates.items()}
    known = {names: value for names, value in dices.items() if not math.isnan(value)}
    if not known:
        raise InputError(f"{run}: no foreground in any validation case; nothing can be chosen.")
    best = max(known, key=lambda names: (round(known[names], 6), -len(names)))
    chosen = candidates[best]
    recipe = Recipe(
        plan_sha256=plan.hash(),
        configurations=list(best),
        folds={name: [folds[name][fold].name for fold in shared] for name in best},
        dice={"+".join(names): round(value, 6) for names, value in known.items()},
        cases=total,
        cleaning=list(_cleaning(chosen, label_names(plan))),
        temperature=_temperature(chosen),
    )
    write_text(folder.path / RECIPE, recipe.to_json())
    return recipe


def _trained(folder: RunFolder, names: list[str], count: int) -> dict[str, dict[int, Path]]:
    found = {}
    for name in names:
        present = {path.name: path for path in folder.trained_folds(name)}
        numbered = {fold: present[f"fold_{fold}"] for fold in range(count) if f"fold_{fold}" in present}
        if numbered and stored_cases(folder.preprocessed(name)):
            found[name] = numbered
    return found


def _member(name: str, folder: Path, device: str, mirror: bool) -> Member:
    window = Window((), mirror_axes=(0,) if mirror else (), skip_empty=True)
    return Member(name, [folder], choose_device(device), window, threading.Lock())


def _validate(member: Member, case: CaseReader, candidate: _Candidate) -> torch.Tensor:
    """Probabilities (classes, I, J, K) of a stored case; its label map and sampled logits go to the candidate."""
    image, truth = case.read_whole()
    if before := previous_labels(member.plan, member.configuration):
        image = np.concatenate([image, one_hot(case.read_previous(), before)])
    logits = torch.stack(list(stream_logits(member.runners, torch.from_numpy(image), member.window)), dim=1)
    labels = logits.argmax(0).numpy().astype(np.int16)
    spacing = member.configuration.spacing_mm
    voxel_mm3 = math.prod(spacing) if spacing is not None and len(spacing) == 3 else None
    candidate.cases[case.case_id] = _Validated(labels, truth, voxel_mm3)
    near = torch.from_numpy(((labels > 0) | (truth > 0)) & (truth < len(logits)))  # where doubt is possible
    flat, target = logits[:, near].T, torch.from_numpy(truth.astype(np.int64))[near]
    stride = max(1, len(flat) // SAMPLED_VOXELS)
    candidate.logits.append(flat[::stride])
    candidate.targets.append(target[::stride])
    return torch.softmax(logits, dim=0)


def _onto(chances: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return torch.stack([interpolate_linear(volume, tuple(shape)) for volume in chances])


def _cleaning(candidate: _Candidate, names: list[str]) -> Iterator[Cleaning]:
    """Steps that raise the mean Dice of their label; other labels keep theirs, as only background is written."""
    for index, name in enumerate(names, start=1):
        before = candidate.label_dice(index)
        smallest = _smallest_component(candidate, index)
        options = [Cleaning(label=name, action="largest_component")]
        if smallest:
            options.append(Cleaning(label=name, action="remove_small", smallest_voxels_mm3=smallest / 2))
        gains = [(_dice_after(candidate, step, index) - before, step) for step in options]
        gain, step = max(gains, key=lambda pair: pair[0])
        if gain >= SMALLEST_GAIN:
            yield step.model_copy(update={"gain": round(gain, 6)})


def _dice_after(candidate: _Candidate, step: Cleaning, index: int) -> float:
    scores = []
    for case in candidate.cases.values():
        cleaned = clean_one(case.labels, step, index, case.voxel_mm3)
        scores.append(dice(case.truth == index, cleaned == index))
    # A case where nothing is left and nothing was there has become right: without it the gain would be hidden.
    was_wrong = [dice_per_label(c.truth, c.labels, [index])[index] == 0 for c in candidate.cases.values()]
    known = [1.0 if math.isnan(score) and wrong else score for score, wrong in zip(scores, was_wrong, strict=True)]
    known = [score for score in known if not math.isnan(score)]
    return fmean(known) if known else -math.inf


def _smallest_component(candidate: _Candidate, index: int) -> float:
    from scipy.ndimage import label

    sizes: list[float] = []
    for case in candidate.cases.values():
        components, count = label(case.truth == index, np.ones((3, 3, 3)))
        if count:
            sizes.append(float(np.bincount(components.ravel())[1:].min()) * (case.voxel_mm3 or 1.0))
    return min(sizes, default=0.0)


def _temperature(candidate: _Candidate) -> float:
    """The divisor of logits with the smallest cross-entropy; 1 for ensembles of configurations."""
    if not candidate.logits or not sum(map(len, candidate.logits)):
        return 1.0
    logits, targets = torch.cat(candidate.logits), torch.cat(candidate.targets)
    losses = [float(torch.nn.functional.cross_entropy(logits / t, targets)) for t in TEMPERATURES]
    return round(float(TEMPERATURES[int(np.argmin(losses))]), 4)
