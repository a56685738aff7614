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
    """Answer POST /predict with mask and report, on this machine (see docs/how-to/serve-a-model.md)."""
    pipeline.serve(model, options, on_message=lambda line: console.print(line, markup=False))
    return {"stopped": True}
