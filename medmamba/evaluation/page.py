"""The evaluation as one HTML file: summary, lesions, comparisons, and every case with its numbers, the worst first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from medmamba.evaluation.compare import Comparison
from medmamba.evaluation.metrics import METRICS, Metric, Score
from medmamba.evaluation.report import Evaluation
from medmamba.evaluation.statistics import Summary
from medmamba.evaluation.subgroups import Subgroups
from medmamba.pages.render import number, render


def evaluation_page(
    evaluation: Evaluation, pictures: Mapping[str, bytes], subgroups: Subgroups | None, comparison: Comparison | None
) -> str:
    """The page; ``pictures`` are PNGs of some cases, shown beside their numbers."""
    metrics = [METRICS[name] for name in evaluation.metrics if METRICS[name].tables != "none"]
    structures, columns = list(evaluation.structures), {} if subgroups is None else subgroups.columns
    return render(
        "evaluation.html",
        evaluation=evaluation,
        headings=[metric.heading for metric in metrics],
        structures=structures,
        summary=[[name, *(_interval(evaluation.summary(one.name, name)) for one in metrics)] for name in structures],
        lesions=list(_lesions(evaluation)),
        comparison=comparison,
        differences=[] if comparison is None else list(_differences(comparison)),
        subgroups={column: list(_groups(evaluation, groups)) for column, groups in columns.items()},
        pictures=pictures,
        means=evaluation.mean_per_case(),
        cases=[
            (case_id, [_row(name, score, metrics) for name, score in evaluation.cases[case_id].items()])
            for case_id in evaluation.worst_first()
        ],
    )


def _interval(found: Summary) -> str:
    """Mean, its interval, and how many values are infinite."""
    interval = "" if math.isnan(found.low) else f" [{number(found.low, 4)}, {number(found.high, 4)}]"
    infinite = f" +{found.infinite} infinite" if found.infinite else ""
    return f"{number(found.mean, 4)}{interval}{infinite}" if found.defined else "–"


def _groups(evaluation: Evaluation, groups: Mapping[str, list[str]]) -> Iterator[list[str]]:
    for group, cases in groups.items():
        dice = (evaluation.summary("dice", name, cases) for name in evaluation.structures)
        yield [group, str(len(cases)), *map(_interval, dice)]


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
