"""Tables of Dice and of the other metrics, as `medmamba evaluate` prints them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from medmamba.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from medmamba.evaluation.compare import Comparison
    from medmamba.evaluation.report import Evaluation


def dice_table(evaluation: Evaluation) -> Table:
    """Dice per case (rows) and label (columns) with the means below."""
    table = Table(title="Dice")
    table.add_column("case")
    for name in [*evaluation.structures, "mean"]:
        table.add_column(name, justify="right")
    means = evaluation.mean_per_case()
    for case_id, scores in evaluation.cases.items():
        table.add_row(
            case_id, *[_shown(value) for value in [*(score.value("dice") for score in scores.values()), means[case_id]]]
        )
    table.add_section()
    per_label = evaluation.mean_per_label()
    table.add_row("mean", *[_shown(value) for value in [*per_label.values(), evaluation.mean_foreground]])
    return table


def summary_table(evaluation: Evaluation) -> Table:
    """Mean and 95% interval of the main metrics per structure."""
    metrics = [name for name in evaluation.metrics if METRICS[name].tables == "all"]
    table = Table(title=f"mean [95% interval]; NSD at {evaluation.tolerances()}")
    table.add_column("structure")
    for metric in metrics:
        table.add_column(METRICS[metric].heading, justify="right")
    for name in evaluation.structures:
        cells = []
        for found in (evaluation.summary(metric, name) for metric in metrics):
            interval = "" if math.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]"
            infinite = f" +{found.infinite} inf" if found.infinite else ""
            cells.append("absent" if not found.defined else f"{found.mean:.3f}{interval}{infinite}")
        table.add_row(name, *cells)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Paired differences of Dice, HD95 and NSD."""
    table = Table(title=f"{comparison.second} minus {comparison.first}, paired")
    for column in ("structure", "metric", "difference", "95% interval", "p (Wilcoxon)", "p (Holm)", "pairs"):
        table.add_column(column, justify="left" if column in ("structure", "metric") else "right")
    for name, rows in comparison.differences.items():
        for metric in (metric for metric in ("dice", "hd95_mm", "hd95_px", "nsd", "nsd_px") if metric in rows):
            found = rows[metric]
            interval = f"{found.low:.4f} to {found.high:.4f}"
            cells = (f"{found.difference:+.4f}", interval, f"{found.p:.3g}", f"{found.p_holm:.3g}", str(found.pairs))
            table.add_row(name, METRICS[metric].heading, *cells)
    return table


def _shown(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.4f}"
