"""``medmamba report RUN``: cross-validate what is trained and write RUN/report/index.html."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import write_json, write_text
from medmamba.models.run_folder import RunFolder
from medmamba.run_report.cross_validation import CrossValidation, cross_validate
from medmamba.run_report.options import ReportOptions
from medmamba.run_report.page import run_page

PAGE = "index.html"


def write_report(
    run: str | Path,
    options: ReportOptions | None = None,
    *,
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **changes: Any,
) -> CrossValidation:
    """Write RUN/report/index.html and cross_validation.json; ``changes`` are single fields of the options by name.

    Raises InputError as :func:`cross_validate` does.
    """
    folder = RunFolder(Path(run))
    plan = folder.read_plan()
    found = cross_validate(folder, ReportOptions.of(options, **changes), on_item=on_item)
    target = folder.path / "report"
    neighbours = sorted(path.name for path in target.glob("*.html") if path.name != PAGE)
    write_json(
        target / "cross_validation.json",
        {
            "configuration": found.configuration,
            "held_out": found.held_out,
            "cases": [
                {**asdict(score), "dice": {k: None if v != v else v for k, v in score.dice.items()}}
                for score in found.scores
            ],
        },
    )
    write_text(target / PAGE, run_page(folder, plan, found, neighbours))
    return found
