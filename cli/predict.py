"""``medmamba predict`` and ``medmamba reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console, report_warnings, stages
from medmamba.command_options import ReproduceOptions
from medmamba.errors import PartialError
from medmamba.inference.options import PredictOptions


def predict(
    model: Annotated[Path, typer.Argument(help="Run folder, trained fold, or bundle.")],
    images: Annotated[
        Path, typer.Argument(help="Image, folder of images, folder of a DICOM series, or a zip of one of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and report.json.")],
    options: PredictOptions,
) -> Answer:
    """Predict masks on the images' own grids, with a report."""
    with stages() as on_item:
        report = pipeline.predict(
            model,
            images,
            output,
            options,
            on_item=on_item,
            on_message=lambda line: console.print(line, markup=False),
            wait=True,
        )
    kept = f", {len(report.resumed)} of them kept from before" if report.resumed else ""
    console.print(f"{len(report.done)} mask(s){kept} and report.json: {output}", markup=False)
    report_warnings([f"{case}: review: {'; '.join(reasons)}" for case, reasons in report.review.items()])
    report.raise_failures()
    return {"output": output, "cases": report.done, "resumed": report.resumed, "review": report.review}


def reproduce(
    report: Annotated[Path, typer.Argument(help="report.json of the prediction.")],
    model: Annotated[Path, typer.Argument(help="Run folder or trained fold that was used.")],
    images: Annotated[Path, typer.Argument(help="Images that were predicted.")],
    options: ReproduceOptions,
) -> Answer:
    """Repeat the prediction of a report and compare the masks byte by byte."""
    with stages() as on_item:
        result = pipeline.reproduce(report, model, images, options, on_item=on_item)
    console.print(f"{len(result.same)} mask(s) reproduced byte by byte.")
    if result.other:
        raise PartialError(f"{len(result.other)} mask(s) came out differently: {', '.join(result.other)}.")
    return {"same": result.same}
