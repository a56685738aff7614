"""From logits on the plan's grid back to a label map on the image's own grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.preprocessing.resample import interpolate_linear, separate_axis
from medmamba.trail import Resample, SpatialTrail


def labels_on_native_grid(logits: torch.Tensor, trail: SpatialTrail) -> NDArray[np.int16]:
    """Label indices (i, j, k) on the trail's native grid from logits (classes, I, J, K) at its end.

    The logits are interpolated class by class with a running maximum, so the memory does not grow with the number of
    classes. What the crop left out is background.
    """
    *steps, last = trail.steps
    if isinstance(last, Resample) and last.shape_before != last.shape_after:
        labels = _largest_class(logits, last)[None]
    else:
        labels = last.undo(logits.argmax(0, keepdim=True).numpy().astype(np.int16))
    return SpatialTrail(trail.native, tuple(steps)).undo(labels, fill=0)[0]


def _largest_class(logits: torch.Tensor, resample: Resample) -> NDArray[np.int16]:
    coarse = None
    if resample.spacing_before_mm is not None and resample.spacing_after_mm is not None:
        coarse = separate_axis(resample.spacing_after_mm, resample.spacing_before_mm)
    best = torch.full(resample.shape_before, -torch.inf)
    labels = torch.zeros(resample.shape_before, dtype=torch.int16)
    for index, volume in enumerate(logits):
        values = interpolate_linear(volume, resample.shape_before, coarse)
        better = values > best
        labels[better] = index
        best = torch.where(better, values, best)
    return labels.numpy()
