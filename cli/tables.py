"""Tables of results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from medmamba.evaluation.report import Evaluation


def dice_table(evaluation: Evaluation) -> Table:
    """Dice per case (rows) and label (columns) with the means below."""
    table = Table(title="Dice")
    table.add_column("case")
    for name in [*evaluation.labels, "mean"]:
        table.add_column(name, justify="right")
    means = evaluation.mean_per_case()
    for case_id, scores in evaluation.cases.items():
        table.add_row(case_id, *[_shown(value) for value in [*scores.values(), means[case_id]]])
    table.add_section()
    per_label = evaluation.mean_per_label()
    table.add_row("mean", *[_shown(value) for value in [*per_label.values(), evaluation.mean_foreground]])
    return table


def _shown(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.4f}"
