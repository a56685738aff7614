"""A candidate of `medmamba find-best`: its predictions of the validation cases, and changes that raise their Dice.

A change (a threshold, a cleaning step) is taken when the mean Dice of one structure gains and that of no other loses.
Structures are the labels of softmax heads and the regions of sigmoid heads.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.disk.atomic import explained
from medmamba.evaluation.dice import dice_of_channels
from medmamba.evaluation.statistics import mean_of_known
from medmamba.models.cleaning import CleaningStep, clean_one, connected_components
from medmamba.models.output_channels import DEFAULT_THRESHOLD, OutputChannels
from medmamba.preprocessing.case import bounding_box

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)
"""Probabilities that are tried beside one half."""
SMALLEST_GAIN = 1e-4
"""Smallest gain in Dice for which a change is made."""
ROUNDING_ERROR = 1e-9
"""Differences of Dice that are none."""

Labels = NDArray[np.int16]


@dataclass(frozen=True)
class ValidatedCase:
    """A validation case and what was predicted for it, as label indices (I, J, K).

    ``annotated`` says of each channel whether its labels were annotated in this case, ``dice`` is the mean over the
    structures. Of sigmoid heads ``probabilities`` is a file of those inside ``box``; outside no threshold is reached.
    """

    truth: Labels
    annotated: tuple[bool, ...]
    voxel_mm3: float | None
    entropy: float | None = None
    labels: Labels = field(default_factory=lambda: np.empty(0, np.int16))
    dice: float = math.nan
    probabilities: Path | None = None
    box: tuple[slice, ...] = ()


Change = Callable[[ValidatedCase], Labels]
"""Label indices of a case after a change of thresholds or a cleaning step."""


@dataclass
class EnsembleCandidate:
    """Configurations that answer together, and their answers; ``logits`` and ``targets`` are samples of voxels."""

    heads: OutputChannels
    cases: dict[str, ValidatedCase] = field(default_factory=dict)
    logits: list[torch.Tensor] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)

    def add(self, case_id: str, probabilities: torch.Tensor, facts: ValidatedCase, keep_at: Path) -> ValidatedCase:
        """Enter probabilities (classes, I, J, K); those of regions are kept in a file."""
        labels = self.heads.label_map(probabilities, [DEFAULT_THRESHOLD] * len(probabilities)).numpy().astype(np.int16)
        case = replace(facts, labels=labels)
        if self.heads.sigmoid:
            values = probabilities.numpy()
            box = tuple(map(slice, *bounding_box((values.max(axis=0) > min(THRESHOLDS))[None])))
            with explained(keep_at):
                np.save(keep_at, values[(slice(None), *box)].astype(np.float16))
            case = replace(case, probabilities=keep_at, box=box)
        case = replace(case, dice=mean_of_known(self._of_case(case, self.heads.structures).values()))
        self.cases[case_id] = case
        return case

    def mean_dice(self) -> float:
        """Over structures, of the mean over cases; nan when there is none anywhere."""
        return mean_of_known(self.dice(self.heads.structures).values())

    def dice(self, channels: Sequence[int], change: Change = lambda case: case.labels) -> dict[int, float]:
        """Mean Dice of each channel over the cases in which it is defined, with ``change`` applied to every case."""
        scores: dict[int, list[float]] = {channel: [] for channel in channels}
        for case in self.cases.values():
            changed = change(case)
            after = self._of_case(replace(case, labels=changed), channels)
            before = after if changed is case.labels else self._of_case(case, channels)
            for channel, value in after.items():
                if math.isnan(value) and before[channel] == 0:
                    value = 1.0  # empty truth, and the change removed the false positive: a gain
                scores[channel].append(value)
        return {channel: mean_of_known(values) for channel, values in scores.items()}

    def _of_case(self, case: ValidatedCase, channels: Sequence[int]) -> dict[int, float]:
        return dice_of_channels(case.truth, case.labels, self.heads, case.annotated, channels)

    def take(self, change: Change) -> None:
        """Make a change of the label maps the present state."""
        self.cases = {case_id: replace(case, labels=change(case)) for case_id, case in self.cases.items()}

    def thresholded(self, thresholds: Sequence[float]) -> Change:
        """The change that other thresholds of the channels make."""

        def change(case: ValidatedCase) -> Labels:
            assert case.probabilities is not None
            inner = torch.from_numpy(np.load(case.probabilities).astype(np.float32))
            labels = np.zeros(case.truth.shape, np.int16)
            labels[case.box] = self.heads.label_map(inner, thresholds).numpy()
            return labels

        return change


def choose_thresholds(candidate: EnsembleCandidate) -> dict[str, float]:
    """The probability above which a voxel belongs to a region, for each region with a better one than one half."""
    limits = [DEFAULT_THRESHOLD] * len(candidate.heads.names)
    candidate.take(candidate.thresholded(limits))
    for channel in candidate.heads.structures:
        tried = [[*limits[:channel], value, *limits[channel + 1 :]] for value in THRESHOLDS]
        changes = [(other, candidate.thresholded(other)) for other in tried]
        if best := _take_best(candidate, [channel], candidate.heads.structures, changes):
            limits, _ = best
    return {
        name: limit for name, limit in zip(candidate.heads.names, limits, strict=True) if limit != DEFAULT_THRESHOLD
    }


def choose_cleaning(candidate: EnsembleCandidate, names: Sequence[str]) -> list[CleaningStep]:
    """For each label the better of two steps on its components, where one helps; later ones see what earlier left."""
    chosen = []
    for index, name in enumerate(names, start=1):
        touched = [channel for channel in candidate.heads.structures if index in candidate.heads.members[channel]]
        options = [CleaningStep(label=name, action="largest_component")]
        if smallest := _smallest_component(candidate, index):
            options.append(CleaningStep(label=name, action="remove_small", smallest_voxels_mm3=smallest / 2))
        if best := _take_best(candidate, touched, touched, [(step, _cleaned(step, index)) for step in options]):
            step, gain = best
            chosen.append(replace(step, gain=round(gain, 6)))
    return chosen


def _cleaned(step: CleaningStep, index: int) -> Change:
    return lambda case: clean_one(case.labels, step, [index], case.voxel_mm3)


def _take_best(
    candidate: EnsembleCandidate,
    channels: Sequence[int],
    touched: Sequence[int],
    changes: Sequence[tuple[Any, Change]],
) -> tuple[Any, float] | None:
    """The change with the largest Dice gain of a channel and no loss in a ``touched`` one: choice and gain."""
    before = candidate.dice(touched)
    best: tuple[float, Any, Change] | None = None
    for choice, change in changes:
        after = candidate.dice(touched, change)
        gains = {channel: after[channel] - before[channel] for channel in touched if not math.isnan(before[channel])}
        if any(math.isnan(gain) or gain < -ROUNDING_ERROR for gain in gains.values()):
            continue
        gain = max(gains.get(channel, 0.0) for channel in channels)
        if gain >= SMALLEST_GAIN and (best is None or gain > best[0]):
            best = gain, choice, change
    if best is None:
        return None
    candidate.take(best[2])
    return best[1], best[0]


def _smallest_component(candidate: EnsembleCandidate, index: int) -> float:
    smallest = []
    for case in candidate.cases.values():
        _, sizes = connected_components(case.truth == index)
        if len(sizes) > 1:
            smallest.append(float(sizes[1:].min()) * (case.voxel_mm3 or 1.0))
    return min(smallest, default=0.0)
