"""Pictures of cases for every page: one slice as geometry/display.py shows it, with the outlines of labels."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry.display import PLANES, Display, pixels_of, slice_of
from medmamba.pages.render import colour_of, grey, png_of

EDGE = 320
"""Longer side of a picture in pixels."""
LINE = 16
"""Height in pixels of a line of text in a sheet of pictures."""
Labels = NDArray[np.integer]


class Picture(NamedTuple):
    """A PNG and what it shows: the slice, counted from 1, of how many, and its plane."""

    png: bytes
    slice_number: int
    slices: int
    plane: str

    @property
    def place(self) -> str:
        """The slice in words; nothing for an image of one slice."""
        return f"{self.plane} slice {self.slice_number} of {self.slices}".strip() if self.slices > 1 else ""


def draw_case(
    display: Display,
    values: Sequence[int],
    *,
    coloured: Labels,
    white: Labels | None = None,
    image: NDArray[Any] | None = None,
) -> Picture:
    """One slice of a case: labels of ``coloured`` (i, j, k) outlined in their colours, those of ``white`` in white.

    The slice has most voxels where both differ, or most labelled ones. Of an ``image`` (C, i, j, k) the first channel
    is shown in grey, three channels without millimetres in colour; without an image the ground is black. ``values`` are
    the label values, in the order of their colours.
    """
    plane, as_photograph = display.plane, display.stored.affine is None
    found = display.volume(coloured)
    true = None if white is None else display.volume(white)
    index = _slice_with_most(found, true, plane)
    rows, columns = pixels_of(display.grid.shape, display.spacing, plane, EDGE)
    places = np.ix_(
        *(
            _nearest(pixels, voxels)
            for pixels, voxels in zip((rows, columns), slice_of(found, plane, 0).shape, strict=True)
        )
    )
    canvas = np.zeros((rows, columns, 3), np.uint8)
    if image is not None:
        shown = display.volume(image if as_photograph and len(image) == 3 else image[:1])
        canvas[:] = np.moveaxis(grey(slice_of(shown, plane, index).astype(np.float32)), 0, -1)[places]
    drawn = slice_of(found, plane, index)[places]
    lines = [(outline(drawn == value), bytes.fromhex(colour_of(number)[1:])) for number, value in enumerate(values)]
    if true is not None:
        drawn = slice_of(true, plane, index)[places]
        for value in values:  # in the background, so that both are seen where they agree
            canvas[outline(drawn == value)] = 255
    for line, colour in lines:
        canvas[line] = list(colour)
    name = "" if as_photograph else PLANES[plane]
    return Picture(png_of(canvas), display.number(plane, index), display.grid.shape[plane], name)


def _slice_with_most(found: Labels, true: Labels | None, plane: int) -> int:
    marked = found > 0 if true is None else found != true
    if true is not None and not marked.any():
        marked = true > 0
    return int(marked.sum(axis=tuple(axis for axis in range(3) if axis != plane)).argmax())


def _nearest(pixels: int, voxels: int) -> NDArray[np.int64]:
    """The voxel below the centre of each pixel of a side."""
    return ((np.arange(pixels) + 0.5) * voxels / pixels).astype(np.int64)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask (rows, columns) that touch one outside of it, or the border."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def sheet(pictures: Mapping[str, bytes], legend: Mapping[str, str], columns: int) -> bytes:
    """A PNG of several pictures with their captions above them; ``legend`` are texts and their colours, on top.

    Text that is wider than its place ends with an ellipsis.
    """
    from PIL import Image, ImageDraw

    columns = max(1, min(columns, len(pictures)))
    width, height = EDGE + LINE, EDGE + 2 * LINE
    whole = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height + LINE))
    draw = ImageDraw.Draw(whole)
    left = 0.0
    for text, colour in legend.items():
        draw.text((left, 0), text, fill=colour)
        left += draw.textlength(text) + LINE
    for number, (caption, png) in enumerate(pictures.items()):
        column, top = number % columns * width, number // columns * height + LINE
        text = caption
        while draw.textlength(text) > EDGE:
            text = text.removesuffix("…")[:-1] + "…"
        draw.text((column, top), text, fill="white")
        whole.paste(Image.open(io.BytesIO(png)), (column, top + LINE))
    buffer = io.BytesIO()
    whole.save(buffer, format="png")
    return buffer.getvalue()
