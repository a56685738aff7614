"""Volumes that a page carries inside itself: every slice in one PNG, which the viewer unfolds.

A volume (I, J, K) becomes one 2D image of I slices below each other: red holds the image, green the truth, blue the
prediction. The viewer (pages/templates/viewer.js) reads the pixels back and draws any slice along any axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medmamba.pages.render import data_uri, grey, png_of
from medmamba.run_report.cross_validation import ShownCase

LONGEST_EDGE = 160
"""Larger volumes are thinned out for the page."""


def volume(title: str, case: ShownCase) -> dict[str, Any]:
    """One case as the viewer reads it."""
    steps = tuple(max(1, -(-size // LONGEST_EDGE)) for size in case.image.shape)
    thin = tuple(slice(None, None, step) for step in steps)
    image, truth, prediction = case.image[thin], case.truth[thin], case.prediction[thin]
    sheet = np.stack([grey(image), truth.astype(np.uint8), prediction.astype(np.uint8)], axis=-1)
    return {
        "title": title,
        "shape": list(image.shape),
        "spacing": [mm * step for mm, step in zip(case.spacing_mm, steps, strict=True)],
        "sheet": data_uri(png_of(sheet.reshape(-1, image.shape[2], 3))),
    }
