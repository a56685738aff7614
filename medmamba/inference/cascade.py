"""The way between the stages of a cascade: labels of the low resolution as further channels of the full one.

Each foreground label of the first stage becomes one channel of zeros and ones, as in nnU-Net, behind the image's own.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.geometry import Grid, Shape, Spacing
from medmamba.geometry.trail import Resample
from medmamba.inference.restore import native_blocks, on_native_grid
from medmamba.models.output_channels import OutputChannels
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.case import PreprocessedCase, preprocess_case, resample_by_halves
from medmamba.preprocessing.labels import label_names


def prepare_stage(
    name: str, array: NDArray[Any], grid: Grid, plan: Plan, configuration: Configuration, previous: Any
) -> PreprocessedCase:
    """An image (C, i, j, k) on the configuration's grid; behind it what the first stage of a cascade found.

    ``previous`` is the first stage, a FoldEnsemble or (in a bundle) a Stage, if there is one.
    """
    case = preprocess_case(name, array, grid, plan, configuration)
    if previous is None:
        return case
    before = previous.prepare(name, array, grid)
    count = len(label_names(plan))
    if plan.conventions == "nnunet":
        found, _ = on_native_grid([(previous.planes(torch.from_numpy(before.image)), before.trail)], previous.heads)
        (labels,) = case.trail.apply(found[None], resample=resample_by_halves)
        return replace(case, image=np.concatenate([case.image, one_hot(labels, count)]))
    (_, first), (_, second) = before.trail.split_resampling(), case.trail.split_resampling()
    labels = labels_on_next_grid(
        previous.planes(torch.from_numpy(before.image)),
        previous.heads,
        (first.shape_after, first.spacing_after_mm),
        (second.shape_after, second.spacing_after_mm),
    )
    return replace(case, image=np.concatenate([case.image, one_hot(labels, count)]))


def labels_on_next_grid(
    planes: Iterable[torch.Tensor],
    heads: OutputChannels,
    given: tuple[Shape, Spacing | None],
    wanted: tuple[Shape, Spacing | None],
) -> NDArray[np.int16]:
    """Label indices (I, J, K) from planes of logits on another grid (shape and spacing) of the same box."""
    step = Resample(wanted[0], given[0], wanted[1], given[1])
    labels = np.empty(wanted[0], np.int16)
    for plane, rows, scores in native_blocks(planes, step):
        labels[plane, rows] = heads.label_map(scores).numpy()
    return labels


def one_hot(labels: NDArray[np.integer], count: int) -> NDArray[np.float32]:
    """A channel (count, ...) of zeros and ones for each of the label indices 1 ... count."""
    return np.stack([labels == index for index in range(1, count + 1)]).astype(np.float32)
