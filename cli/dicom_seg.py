"""``medmamba dicom-seg``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console
from medmamba.command_options import DicomSegOptions


def dicom_seg(
    mask: Annotated[Path, typer.Argument(help="Mask on the grid of the series, written by `medmamba predict`.")],
    series: Annotated[Path, typer.Argument(help="The predicted series, or its study: a folder or a zip.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="DICOM SEG file to write.")],
    options: DicomSegOptions,
) -> Answer:
    """Write a mask as a DICOM SEG that references its series, and verify it by reading it back."""
    names = pipeline.dicom_seg(mask, series, output, options)
    console.print(f"{len(names) - 1} segment(s), read back equal: {output}", markup=False)
    return {"segmentation": output, "labels": names}
