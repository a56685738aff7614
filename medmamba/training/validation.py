"""Validation on whole volumes: Dice by sliding window on the plan's grid."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medmamba.evaluation.dice import dice
from medmamba.inference.cascade import one_hot
from medmamba.inference.sliding_window import predict_logits
from medmamba.models.network import previous_labels
from medmamba.models.output_channels import OutputChannels
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader

EXAMPLES = 4
"""Cases of which the slice with most foreground is kept for an image."""


@dataclass(frozen=True)
class Validation:
    """What a validation found: Dice over channels and cases, and how much is predicted as foreground.

    Attributes:
        mean: Dice over all channels and cases; nan if nothing counts.
        by_name: Dice of each label or region.
        foreground_fraction: of the voxels that are not ignored.
        cases: that were validated.
        examples: a slice of each of the first cases.
    """

    mean: float
    by_name: dict[str, float]
    foreground_fraction: float
    cases: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Example:
    """One slice of a validated case: image (H, W), truth and prediction as label indices."""

    case_id: str
    image: NDArray[np.float32]
    truth: NDArray[np.integer]
    prediction: NDArray[np.integer]


@torch.no_grad()
def validate(
    network: nn.Module,
    cases: Sequence[CaseReader],
    plan: Plan,
    configuration: Configuration,
    device: torch.device,
    *,
    until: float = math.inf,
) -> Validation:
    """Mean Dice over whole validation volumes; structures absent from truth and prediction do not count.

    Ignored voxels are left out, and so are channels that are not annotated in a case. After the time ``until`` (on the
    monotonic clock) no further volume is begun; the first always is.
    """
    channels, stage_labels = OutputChannels.of_plan(plan), previous_labels(plan, configuration)
    first = 0 if channels.sigmoid else 1
    examples: list[Example] = []
    scores: dict[str, list[float]] = {name: [] for name in channels.names[first:]}
    foreground = voxels = 0
    seen = 0
    for case in cases:
        if seen and time.monotonic() >= until:
            break
        seen += 1
        image, truth = case.read_whole()
        if stage_labels:
            image = np.concatenate([image, one_hot(case.read_previous(), stage_labels)])
        logits = predict_logits(network, torch.from_numpy(image), tuple(configuration.patch_size), device)
        prediction = channels.label_map(logits).cpu().numpy()
        known = np.ones(truth.shape, bool) if channels.ignore is None else truth != channels.ignore
        if len(examples) < EXAMPLES:
            best = int(np.argmax((truth > 0).sum((1, 2))))
            examples.append(Example(case.case_id, image[0, best], truth[best], prediction[best]))
        foreground += int((prediction[known] > 0).sum())
        voxels += int(known.sum())
        for channel, (name, annotated) in enumerate(
            zip(channels.names, channels.annotated(case.annotated), strict=True)
        ):
            if channel < first or not annotated:
                continue
            members = channels.members[channel]
            scores[name].append(dice(np.isin(truth[known], members), np.isin(prediction[known], members)))
    every = [score for values in scores.values() for score in values]
    by_name = {name: _mean(values) for name, values in scores.items()}
    return Validation(_mean(every), by_name, foreground / max(voxels, 1), seen, tuple(examples))


def spread_subset(cases: Sequence[CaseReader], count: int | None) -> list[CaseReader]:
    """At most ``count`` cases, taken evenly from the list, so that every epoch validates on the same ones."""
    if count is None or count >= len(cases):
        return list(cases)
    return [cases[int(index)] for index in np.linspace(0, len(cases) - 1, count).round()]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
