"""Between the stages of a cascade: what the low resolution found, as further channels of the full resolution.

Each foreground label of the first stage becomes one channel of zeros and ones, as in nnU-Net, behind the image's own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.geometry import Shape, Spacing
from medmamba.heads import Heads
from medmamba.inference.restore import native_blocks
from medmamba.trail import Resample


def labels_on_next_grid(
    planes: Iterable[torch.Tensor],
    heads: Heads,
    given: tuple[Shape, Spacing | None],
    wanted: tuple[Shape, Spacing | None],
) -> NDArray[np.int16]:
    """Label indices (I, J, K) on the next stage's grid from planes of logits on the first stage's.

    ``given`` and ``wanted`` are the shapes and spacings of the two grids, which cover the same box.
    """
    step = Resample(wanted[0], given[0], wanted[1], given[1])
    labels = np.empty(wanted[0], np.int16)
    for plane, rows, scores in native_blocks(planes, step):
        labels[plane, rows] = heads.label_map(scores).numpy()
    return labels


def one_hot(labels: NDArray[np.integer], count: int) -> NDArray[np.float32]:
    """A channel (count, ...) of zeros and ones for each of the label indices 1 ... count."""
    return np.stack([labels == index for index in range(1, count + 1)]).astype(np.float32)
