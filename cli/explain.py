"""``medmamba explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console
from medmamba.command_options import ExplainOptions


def explain(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`.")], options: ExplainOptions
) -> Answer:
    """Print every decision of the plan: rule, inputs, value and reason."""
    plan, lines = pipeline.explain(run, options)
    for line in lines:
        console.print(line, markup=False)
    return {"plan": plan}
