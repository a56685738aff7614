"""``medmamba explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`.")],
) -> None:
    """Every decision of the plan: the rule, what went in, what came out, and why."""
    from medmamba.cli.console import console
    from medmamba.plans.explain import explain_lines
    from medmamba.run_folder import RunFolder

    for line in explain_lines(RunFolder(run).read_plan()):
        console.print(line, markup=False)
