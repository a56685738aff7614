"""Volumes that a page carries inside itself: every slice in one PNG, which the viewer unfolds.

A volume (I, J, K) becomes one 2D image of I slices below each other: red holds the image, green the truth, blue the
prediction. The viewer (pages/templates/viewer.js) reads the pixels back and draws any slice along any axis.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.pages.render import data_uri
from medmamba.run_report.cross_validation import ShownCase

LONGEST_EDGE = 160
"""Larger volumes are thinned out for the page."""


def volume(title: str, case: ShownCase) -> dict[str, Any]:
    """One case as the viewer reads it."""
    steps = tuple(max(1, -(-size // LONGEST_EDGE)) for size in case.image.shape)
    thin = tuple(slice(None, None, step) for step in steps)
    image, truth, prediction = case.image[thin], case.truth[thin], case.prediction[thin]
    sheet = np.stack([_grey(image), truth.astype(np.uint8), prediction.astype(np.uint8)], axis=-1)
    return {
        "title": title,
        "shape": list(image.shape),
        "spacing": [mm * step for mm, step in zip(case.spacing_mm, steps, strict=True)],
        "sheet": data_uri(_png(sheet.reshape(-1, image.shape[2], 3))),
    }


def _grey(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    low, high = np.percentile(image, (0.5, 99.5))
    return (np.clip((image - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
