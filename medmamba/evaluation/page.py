"""The evaluation as one HTML file that needs nothing else: summary, worst cases first with pictures, every number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from medmamba.evaluation.compare import Comparison
from medmamba.evaluation.metrics import METRICS, Score
from medmamba.evaluation.overlay import data_uri
from medmamba.evaluation.report import Evaluation
from medmamba.evaluation.statistics import Summary
from medmamba.evaluation.subgroups import Subgroups

SHOWN = (
    "dice",
    "iou",
    "hd95",
    "nsd",
    "sensitivity",
    "specificity",
    "volume_bias",
    "lesion_sensitivity",
    "lesion_precision",
)
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;margin:.5rem 0}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #888}small{color:#666}
.case{display:flex;gap:1rem;flex-wrap:wrap;align-items:flex-start;border-top:2px solid #888;padding:.6rem 0}
.case img{background:#000;max-width:20rem}.scroll{overflow-x:auto}
"""


def evaluation_page(
    evaluation: Evaluation,
    *,
    pictures: Mapping[str, bytes] | None = None,
    subgroups: Subgroups | None = None,
    comparison: Comparison | None = None,
) -> str:
    """The page; ``pictures`` are PNGs of some cases, shown beside their numbers."""
    pictures = pictures or {}
    parts = [
        f"<h1>Evaluation of {len(evaluation.cases)} cases</h1>",
        f"<p>Mean Dice over structures: <b>{_number(evaluation.mean_foreground)}</b>. Distances in {evaluation.unit}, "
        f"NSD at {evaluation.tolerance:g} {evaluation.unit}. Intervals: 95%, bootstrap over cases. "
        "– means undefined (structure absent); undefined and infinite values are not in the means.</p>",
    ]
    if evaluation.missing:
        parts.append(f"<p><b>{len(evaluation.missing)} cases without a prediction count as empty masks.</b></p>")
    parts += ["<h2>Summary</h2>", _summary(evaluation), "<h2>Lesions by size</h2>", _lesions(evaluation)]
    if comparison is not None:
        parts += ["<h2>Comparison</h2>", _comparison(comparison)]
    if subgroups is not None:
        parts += ["<h2>Subgroups</h2>", _subgroups(subgroups, evaluation)]
    parts.append("<h2>Cases, the worst first</h2>")
    if pictures:
        parts.append(
            "<p><small>Pictures: the slice that differs most; truth in white, prediction in colour.</small></p>"
        )
    means = evaluation.mean_per_case()
    for case_id in evaluation.worst_first():
        picture = f'<img alt="" src="{data_uri(pictures[case_id])}">' if case_id in pictures else ""
        table = _scores(evaluation.cases[case_id])
        parts.append(
            f'<div class="case">{picture}<div class="scroll"><b>{escape(case_id)}</b> '
            f"mean Dice {_number(means[case_id])}{table}</div></div>"
        )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Evaluation</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _summary(evaluation: Evaluation) -> str:
    rows = []
    for name in evaluation.structures:
        rows.append([escape(name), *(_interval(evaluation.summary(metric, name)) for metric in SHOWN)])
    return _table(["structure", *(METRICS[metric].title for metric in SHOWN)], rows)


def _lesions(evaluation: Evaluation) -> str:
    rows = []
    for name in evaluation.structures:
        for row in evaluation.lesions_by_size(name):
            size = f"{row['from']:g} to {row['to']:g}" if row["to"] is not None else f"{row['from']:g} and more"
            share = _number(math.nan if row["sensitivity"] is None else row["sensitivity"])
            rows.append([escape(name), f"{size} {row['unit']}", str(row["lesions"]), str(row["found"]), share])
    return _table(["structure", "size", "lesions", "found", "share"], rows)


def _scores(scores: Mapping[str, Score]) -> str:
    rows = []
    for name, score in scores.items():
        volumes = "" if score.truth_ml is None else f"{score.prediction_ml:.2f} of {score.truth_ml:.2f}"
        rows.append([escape(name), *(_number(score.value(metric)) for metric in SHOWN), volumes])
    return _table(["structure", *(METRICS[metric].title for metric in SHOWN), "ml"], rows)


def _subgroups(subgroups: Subgroups, evaluation: Evaluation) -> str:
    parts = []
    for column, groups in subgroups.summaries(evaluation, "dice").items():
        rows = [
            [escape(group), str(len(subgroups.columns[column][group])), *(_interval(row[name]) for name in row)]
            for group, row in groups.items()
        ]
        parts.append(
            _table([escape(column), "cases", *(f"Dice {escape(name)}" for name in evaluation.structures)], rows)
        )
    return "".join(parts)


def _comparison(comparison: Comparison) -> str:
    rows = []
    for name, metrics in comparison.differences.items():
        for metric, found in metrics.items():
            if metric in SHOWN and found.pairs:
                rows.append(
                    [
                        escape(name),
                        METRICS[metric].title,
                        _number(found.first_mean),
                        _number(found.second_mean),
                        f"{found.difference:+.4f}",
                        f"{_number(found.low)} to {_number(found.high)}",
                        _number(found.p),
                        _number(found.p_holm),
                        f"{found.higher} / {found.equal} / {found.lower}",
                    ]
                )
    heads = ["structure", "metric", escape(comparison.first), escape(comparison.second), "difference", "95% interval"]
    return _table([*heads, "p (Wilcoxon)", "p (Holm)", "higher / equal / lower"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _interval(summary: Summary) -> str:
    if not summary.defined:
        return "–"
    infinite = f" <small>{summary.infinite} infinite</small>" if summary.infinite else ""
    known = "" if math.isnan(summary.low) else f" <small>{_number(summary.low)} to {_number(summary.high)}</small>"
    return f"{_number(summary.mean)}{known}{infinite}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
