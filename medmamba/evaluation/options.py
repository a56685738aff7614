"""The options of `medmamba evaluate`."""

from pathlib import Path
from typing import Literal

from medmamba.options import OVERWRITE_TEXT, Options, option

TOLERANCE_MM = 1.0
"""Tolerance of the surface Dice (NSD)."""
MOST_PICTURE_MIB = 12
"""Of the pictures in a page, which base64 makes larger by a third: a page stays below 20 MB and opens at once."""


class EvaluateOptions(Options):
    """The choices of :func:`medmamba.evaluation.run.run_evaluation`."""

    other: Path | None = option(
        None, "Second folder of masks of the same cases, for paired differences.", flag="--compare"
    )
    tolerance_mm: float = option(
        TOLERANCE_MM, "Tolerance of the normalised surface distance (NSD) in mm.", flag="--tolerance", ge=0
    )
    tolerance_px: float | None = option(
        None,
        "Tolerance of the NSD in pixels, for images without millimetres. Default: the number of --tolerance.",
        ge=0,
    )
    missing: Literal["fail", "empty"] = option(
        "fail", "Cases without a prediction: fail (an error), or empty (counted as an empty mask)."
    )
    subgroups: Path | None = option(
        None, "CSV file with a column 'case' and one column per property that defines subgroups."
    )
    images: Path | None = option(None, "Folder of the images, to show behind the outlines.")
    pictures: int = option(12, f"Number of worst cases shown with outlines; no more than {MOST_PICTURE_MIB} MiB.", ge=0)
    overwrite: bool = option(False, OVERWRITE_TEXT)

    @property
    def tolerance_in_pixels(self) -> float:
        """``tolerance_px``, or the number of ``tolerance_mm``."""
        return self.tolerance_mm if self.tolerance_px is None else self.tolerance_px
