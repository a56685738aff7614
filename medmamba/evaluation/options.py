"""The options of `medmamba evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medmamba.options import Options, option

TOLERANCE_MM = 1.0
"""Tolerance of the surface Dice (NSD)."""
OVERLAYS = 12
"""Cases, the worst, that are shown on the page with outlines of truth and prediction."""


class EvaluateOptions(Options):
    """The choices of :func:`medmamba.evaluation.run.run_evaluation`."""

    other: Path | None = option(
        None, "Second folder of masks of the same cases: paired differences to it.", flag="--compare"
    )
    tolerance_mm: float = option(TOLERANCE_MM, "Tolerance of the surface Dice (NSD) in mm.", flag="--tolerance", ge=0)
    tolerance_px: float | None = option(
        None,
        "Tolerance of the surface Dice in pixels, for images without millimetres. Default: the number of --tolerance.",
        ge=0,
    )
    missing: Literal["fail", "empty"] = option(
        "fail", "A case without prediction: fail is an error, empty counts it as an empty mask."
    )
    subgroups: Path | None = option(None, "CSV with a column 'case' and properties of the cases.")
    images: Path | None = option(None, "Folder of the images, shown below the outlines.")
    pictures: int = option(OVERLAYS, "How many of the worst cases the page shows with outlines.", ge=0)

    @property
    def tolerance_in_pixels(self) -> float:
        """``tolerance_px``, or the number of ``tolerance_mm``."""
        return self.tolerance_mm if self.tolerance_px is None else self.tolerance_px
