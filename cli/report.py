"""``medmamba report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console, stages
from medmamba.run_report.options import ReportOptions


def report(
    run: Annotated[Path, typer.Argument(help="Run folder with trained folds.")], options: ReportOptions
) -> Answer:
    """Write RUN/report/index.html: results per fold, worst and best cases, a viewer, curves, the plan's reasons."""
    with stages() as on_item:
        found = pipeline.report(run, options, on_item=on_item)
    mean, standard_deviation, count = found.mean()
    kind = "held-out" if found.held_out else "training (nothing is held out)"
    page = run / "report" / "index.html"
    console.print(f"Dice of {count} {kind} cases: {mean:.4f} ± {standard_deviation:.4f}")
    console.print(f"Report: {page}", markup=False)
    return {"report": page, "held_out": found.held_out, "dice": mean, "cases": count}
