"""``medmamba explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def explain(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`.")],
    what_if: Annotated[
        str | None,
        typer.Option(help='Options of `medmamba plan`, to see the other plan beside this one: "--device-memory 6GB".'),
    ] = None,
) -> Answer:
    """Every decision of the plan: the rule, what went in, what came out, and why."""
    from medmamba.cli.console import console
    from medmamba.models.run_folder import RunFolder
    from medmamba.plans.explain import compare_lines, explain_lines

    plan = RunFolder(run).read_plan()
    if what_if is None:
        lines = explain_lines(plan)
    else:
        from medmamba.planning import what_if as planning
        from medmamba.plans.what_if import changes_from

        lines = compare_lines(*planning.what_if(run, **changes_from(what_if)), names=("now", what_if.strip()))
    for line in lines:
        console.print(line, markup=False)
    return {"plan": plan}
