"""One small picture per case: the slice that shows most of the labels, each label outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry import Spacing
from medmamba.pages.render import colour_of, grey, png_of

EDGE = 200
"""Pixels of a picture's longer side."""


class Thumbnail(NamedTuple):
    """A PNG and the slice that it shows (counted from 1, of how many)."""

    png: bytes
    slice_number: int
    slices: int


def spread_over(case_ids: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of the cases, evenly spaced, the first and the last among them."""
    if len(case_ids) <= most:
        return list(case_ids)
    return [case_ids[int(index)] for index in np.linspace(0, len(case_ids) - 1, most).round()]


def thumbnail(image: NDArray[np.float32], labels: NDArray[np.integer], spacing: Spacing | None) -> Thumbnail:
    """The slice of an image (C, I, J, K) across its first axis with most labelled voxels of ``labels`` (I, J, K).

    ``spacing`` is in mm per axis; without it pixels are square and rows run downwards, as in a photograph. The first
    channel is shown in grey, three channels without spacing in colour.
    """
    index = int((labels > 0).sum(axis=(1, 2)).argmax())
    picture = image[:, index] if spacing is None and len(image) == 3 else image[:1, index]
    colours = np.repeat(grey(picture), 4 - len(picture) if len(picture) == 1 else 1, axis=0)  # (3, J, K)
    rows, columns = _nearest(labels.shape[1:], (1.0, 1.0) if spacing is None else spacing[1:])
    colours, truth = colours[:, rows][:, :, columns], labels[index][rows][:, columns]
    for value in np.unique(truth[truth > 0]):
        shade = colour_of(int(value) - 1)
        colours[:, outline(truth == value)] = np.array([[int(shade[n : n + 2], 16)] for n in (1, 3, 5)])
    upright = colours.transpose(2, 1, 0)  # the third axis runs upwards, the second to the right
    return Thumbnail(png_of(upright if spacing is None else upright[::-1]), index + 1, len(labels))


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask (rows, columns) that touch one outside of it, or the border."""
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)


def _nearest(shape: Sequence[int], spacing: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each pixel along both sides of the picture, the nearest voxel."""
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    sizes = [max(1, round(EDGE * length / max(extent))) for length in extent]
    rows, columns = (((np.arange(m) + 0.5) * n / m).astype(np.int64) for m, n in zip(sizes, shape, strict=True))
    return rows, columns
