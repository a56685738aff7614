"""Cases as the viewer (templates/viewer.js) reads them, from JSON inside the page.

cases       title; shape and spacing along the axes, which run to the left, posterior and inferior (without an affine
            as stored); letters, such as "RL", of where each axis begins and ends; plane, the axis across the slices
            of a single picture; sheet, a PNG of I times J rows and K columns: red the image, green the truth, blue
            the prediction; photograph, a PNG of the same voxels in colour, or null; errors, a grey PNG of them with
            the chance of error in percent, or null; range, the intensities of red 0 and 255; window, width and level at
            the beginning
names       of the labels 1, 2, ...
colours     of the labels, in turn
truth       whether the cases have one
unit        of intensities, "HU" or ""
presets     windows of CT: name, width, level
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry.display import Display
from medmamba.pages.render import data_uri, grey, png_of

MOST_VALUES = 2_000_000
"""Values of image and photograph that a case may have in the page; larger volumes are thinned out. Noise hardly
compresses, so that six cases are at most about 16 MB."""


def volume_of(
    title: str,
    display: Display,
    image: NDArray[Any],
    prediction: NDArray[np.integer],
    *,
    truth: NDArray[np.integer] | None = None,
    errors: NDArray[np.uint8] | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
) -> dict[str, Any]:
    """One case, thinned out if it is large.

    ``image`` (C, i, j, k) is its first channel, or the three of a photograph; labels, and the chance of ``errors`` in
    percent, are (i, j, k). Intensities are shown times ``scale`` plus ``shift``.
    """
    steps = steps_to(display.grid.shape, display.spacing, MOST_VALUES // (4 if len(image) == 3 else 1))
    thin: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
    image, prediction = (display.volume(one)[thin] for one in (image, prediction))
    true = np.zeros_like(prediction) if truth is None else display.volume(truth)[thin]
    low, first, last, high = np.percentile(
        image[0], (0, 0.5, 99.5, 100) if image[0].size < 1000 else (0.05, 0.5, 99.5, 99.95)
    )
    span = max(float(high - low), 1e-6)
    red = np.clip((image[0] - low) / span * 255, 0, 255).round()
    labels = ((array - 1) % 255 + 1 if array.max() > 255 else array for array in (true, prediction))
    shape, last_axis = red.shape, red.shape[2]
    sheet = np.stack([red, *labels], axis=-1).astype(np.uint8)
    photograph = np.moveaxis(grey(image), 0, -1) if len(image) == 3 else None
    ends = [round(float(value) * scale + shift, 4) for value in (low, low + span)]
    return {
        "title": title,
        "shape": list(shape),
        "spacing": [mm * step for mm, step in zip(display.spacing, steps, strict=True)],
        "letters": list(display.letters),
        "plane": display.plane,
        "range": [0, 255] if photograph is not None else ends,
        "window": [255, 127.5] if photograph is not None else _window(first, last, scale, shift),
        "sheet": data_uri(png_of(sheet.reshape(-1, last_axis, 3))),
        "photograph": None if photograph is None else data_uri(png_of(photograph.reshape(-1, last_axis, 3))),
        "errors": None if errors is None else data_uri(png_of(display.volume(errors)[thin].reshape(-1, last_axis))),
    }


def steps_to(shape: tuple[int, int, int], spacing: tuple[float, float, float], most: int) -> tuple[int, int, int]:
    """Of how many voxels along each axis one is kept, so that at most ``most`` are; the finest axis goes first."""
    steps = [1, 1, 1]
    while math.prod(-(-size // step) for size, step in zip(shape, steps, strict=True)) > most:
        wide = [mm * step if size > step else math.inf for size, step, mm in zip(shape, steps, spacing, strict=True)]
        steps[wide.index(min(wide))] += 1
    i, j, k = steps
    return i, j, k


def _window(first: float, last: float, scale: float, shift: float) -> list[float]:
    """Width and level of a window between two normalised intensities."""
    return [round((last - first) * scale, 4), round((first + last) / 2 * scale + shift, 4)]
