"""``medmamba report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder with trained folds.")],
    cases: Annotated[int | None, typer.Option(help="Validation cases per fold at most; default: all.", min=1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over flips, as predict does; 8x slower in 3D.")] = (
        False
    ),
) -> Answer:
    """Write RUN/report/index.html: results by fold, worst and best cases, a viewer, curves, the plan's reasons."""
    from medmamba.cli.console import console, stages
    from medmamba.run_report.write import write_report

    with stages() as on_item:
        found = write_report(run, device=device, mirror=mirror, cases=cases, on_item=on_item)
    mean, deviation, count = found.mean()
    kind = "held-out" if found.held_out else "training (nothing is held out)"
    console.print(f"Dice of {count} {kind} cases: {mean:.4f} ± {deviation:.4f}")
    console.print(f"Report: {run / 'report' / 'index.html'}", markup=False)
    return {
        "report": run / "report" / "index.html",
        "held_out": found.held_out,
        "dice": mean,
        "cases": count,
    }
