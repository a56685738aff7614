"""A small 2D image of one case: the slice where truth and prediction differ most, both outlined."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry import Grid
from medmamba.geometry.trail import Reorient, SpatialTrail
from medmamba.pages.render import colour_of, grey, png_of

WIDTH = 320
"""Longest edge of a picture in pixels."""


def overlay_png(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    grid: Grid,
    values: Sequence[int],
    image: NDArray[np.generic] | None = None,
) -> bytes:
    """PNG of the axial slice with most differing voxels, over ``image`` (i, j, k) or black; truth in white."""
    from scipy.ndimage import binary_erosion

    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid))
    true, found = (trail.apply(labels[None])[0] for labels in (truth, prediction))
    wrong = (true != found).sum(axis=(0, 1))
    index = int((wrong if wrong.any() else (true > 0).sum(axis=(0, 1))).argmax())
    picture = np.zeros(true.shape[:2])
    if image is not None:
        picture = trail.apply(image[None])[0][:, :, index].astype(np.float64)
    spacing = trail.grid.spacing_mm or (1.0, 1.0, 1.0)
    extent = [edge * step for edge, step in zip(true.shape[:2], spacing[:2], strict=True)]
    scale = WIDTH / max(extent)
    width, height = (max(1, round(edge * scale)) for edge in extent)
    upright = grid.affine is not None  # anterior is up; a photograph keeps its first row on top
    canvas = np.repeat(_resized(grey(picture, 1.0), (width, height), upright)[..., None], 3, axis=2)
    for number, value in enumerate(values):
        outlines = []
        for plane in (true[:, :, index], found[:, :, index]):
            mask = _resized((plane == value).astype(np.uint8), (width, height), upright) > 0
            outlines.append(mask & ~binary_erosion(mask, border_value=1))
        canvas[outlines[1]] = list(bytes.fromhex(colour_of(number)[1:]))
        canvas[outlines[0] & ~outlines[1]] = 255
    return png_of(canvas.astype(np.uint8))


def _resized(plane: NDArray[np.uint8], size: tuple[int, int], upright: bool) -> NDArray[np.uint8]:
    """(i, j) as rows of pixels of ``size`` (width, height)."""
    from PIL import Image

    rows = np.asarray(Image.fromarray(np.ascontiguousarray(plane.T)).resize(size, Image.Resampling.NEAREST))
    return rows[::-1] if upright else rows
