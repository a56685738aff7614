"""The evaluation as one HTML file: summary, lesions, comparisons, and every case with its numbers, the worst first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from medmamba.evaluation.compare import Comparison
from medmamba.evaluation.metrics import METRICS, Metric, Score
from medmamba.evaluation.report import Evaluation
from medmamba.evaluation.subgroups import Subgroups
from medmamba.pages.render import number, render


def evaluation_page(
    evaluation: Evaluation,
    *,
    pictures: Mapping[str, bytes] | None = None,
    subgroups: Subgroups | None = None,
    comparison: Comparison | None = None,
) -> str:
    """The page; ``pictures`` are PNGs of some cases, shown beside their numbers."""
    metrics = [METRICS[name] for name in evaluation.metrics if METRICS[name].tables != "none"]
    return render(
        "evaluation.html",
        evaluation=evaluation,
        metrics=metrics,
        lesions=list(_lesions(evaluation)),
        comparison=comparison,
        differences=[] if comparison is None else list(_differences(comparison)),
        subgroups=subgroups,
        pictures=pictures or {},
        means=evaluation.mean_per_case(),
        cases=[
            (case_id, [_row(name, score, metrics) for name, score in evaluation.cases[case_id].items()])
            for case_id in evaluation.worst_first()
        ],
    )


def _lesions(evaluation: Evaluation) -> Iterator[list[str]]:
    for name in evaluation.structures:
        for row in evaluation.lesions_by_size(name):
            size = f"{row['from']:g} to {row['to']:g}" if row["to"] is not None else f"{row['from']:g} and more"
            fraction = math.nan if row["sensitivity"] is None else row["sensitivity"]
            yield [name, f"{size} {row['unit']}", str(row["lesions"]), str(row["found"]), number(fraction, 4)]


def _row(name: str, score: Score, metrics: list[Metric]) -> list[str]:
    volumes = "" if score.truth_ml is None else f"{score.prediction_ml:.2f} of {score.truth_ml:.2f}"
    return [name, *(number(score.value(metric.name), 4) for metric in metrics), volumes]


def _differences(comparison: Comparison) -> Iterator[list[str]]:
    for name, found in comparison.differences.items():
        for metric, difference in found.items():
            if METRICS[metric].tables != "none" and difference.pairs:
                yield [
                    name,
                    METRICS[metric].heading,
                    number(difference.first_mean, 4),
                    number(difference.second_mean, 4),
                    f"{difference.difference:+.4f}",
                    f"{number(difference.low, 4)} to {number(difference.high, 4)}",
                    number(difference.p, 4),
                    number(difference.p_holm, 4),
                    f"{difference.higher} / {difference.equal} / {difference.lower}",
                ]
