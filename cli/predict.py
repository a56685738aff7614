"""``medmamba predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[Path, typer.Argument(help="Run folder, or the folder of one trained fold.")],
    images: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and report.json.")],
    configuration: Annotated[str | None, typer.Option(help="Configuration of the plan, default: its default.")] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Fold to use; repeat for several. Default: all.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="No test-time mirroring: 8x faster in 3D.")] = False,
) -> None:
    """Predict masks on the images' own grids."""
    from medmamba import pipeline
    from medmamba.cli.console import console, stages
    from medmamba.cli.options import fold_name
    from medmamba.errors import InputErrors, PartialError

    with stages() as on_item:
        report = pipeline.predict(
            model,
            images,
            output,
            configuration=configuration,
            folds=None if fold is None else [fold_name(name) for name in fold],
            device=device,
            mirror=not no_mirror,
            on_item=on_item,
        )
    console.print(f"{len(report.done)} mask(s) and report.json: {output}", markup=False)
    if report.failed:
        lines = list(report.failed.values())
        summary = f"{len(report.done)} ok, {len(lines)} failed: {', '.join(report.failed)}"
        if not report.done:
            raise InputErrors(lines, summary=summary)
        raise PartialError("\n".join([*lines, summary]))
