"""``medmamba serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console
from medmamba.serving.options import ServeOptions


def serve(
    model: Annotated[Path, typer.Argument(help="Run folder, trained fold, or bundle.")], options: ServeOptions
) -> Answer:
    """Serve predictions over HTTP on this machine: POST /predict returns mask and report."""
    pipeline.serve(model, options, on_message=lambda line: console.print(line, markup=False))
    return {"stopped": True}
