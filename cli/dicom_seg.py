"""``medmamba dicom-seg``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def dicom_seg(
    mask: Annotated[Path, typer.Argument(help="Mask on the grid of the series, as `medmamba predict` wrote it.")],
    series: Annotated[Path, typer.Argument(help="The series that was predicted, or its study: a folder or a zip.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="DICOM SEG file to write.")],
    codes: Annotated[Path | None, typer.Option(help="labels.json with code and colour of each label.")] = None,
    choice: Annotated[
        str | None, typer.Option("--series", help="Number or UID of the series, where a study holds several.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat. Default: from report.json.")] = None,
) -> Answer:
    """Write a mask as DICOM SEG that refers to its series, and read it back."""
    from medmamba.cli.console import console
    from medmamba.cli.options import named_values
    from medmamba.dicom.export import mask_to_segmentation

    names = mask_to_segmentation(
        mask, series, output, labels=named_values(label, "--label"), codes=codes, choice=choice
    )
    console.print(f"{len(names) - 1} segment(s), read back equal: {output}", markup=False)
    return {"segmentation": output, "labels": names}
