"""Two folders of predictions of the same cases: paired differences with a test and an interval."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import write_json
from medmamba.errors import InputError
from medmamba.evaluation.metrics import as_json
from medmamba.evaluation.report import Evaluation, write_table
from medmamba.evaluation.statistics import PairedDifference, holm, paired_difference

MEAN = "mean of structures"


@dataclass(frozen=True)
class Comparison:
    """Differences, second minus first, by structure (and for the mean of them) and metric."""

    first: str
    second: str
    differences: dict[str, dict[str, PairedDifference]]

    def as_dict(self) -> dict[str, Any]:
        """For strict JSON."""
        return {
            "schema_version": 1,
            "first": self.first,
            "second": self.second,
            "difference": "second minus first",
            "test": "Wilcoxon signed rank, two-sided; p_holm is corrected over the structures of a metric",
            "interval": "95% percentile bootstrap of the mean difference over cases",
            "differences": {
                name: {metric: as_json(found) for metric, found in rows.items()}
                for name, rows in self.differences.items()
            },
        }

    def write(self, folder: Path) -> None:
        """Write ``comparison.json`` and ``comparison.csv``."""
        write_json(folder / "comparison.json", self.as_dict())
        rows = [
            {"structure": name, "metric": metric, **as_json(found)}
            for name, table in self.differences.items()
            for metric, found in table.items()
        ]
        write_table(folder / "comparison.csv", list(rows[0]), [list(row.values()) for row in rows])


def compare(first: Evaluation, second: Evaluation, *, names: tuple[str, str] = ("first", "second")) -> Comparison:
    """Paired differences of two evaluations of the same cases and structures."""
    if list(first.cases) != list(second.cases):
        only = sorted(set(first.cases) ^ set(second.cases))
        raise InputError(
            f"The two evaluations do not hold the same cases; {only[0]} is in one only. Evaluate both alike."
        )
    if not first.cases:
        raise InputError("There is no case to compare. Give truths that both folders have masks for.")
    table: dict[str, dict[str, PairedDifference]] = {name: {} for name in first.structures}
    for metric in first.metrics:
        found = {
            name: paired_difference(first.values(metric, name), second.values(metric, name))
            for name in first.structures
        }
        for (name, difference), p in zip(found.items(), holm([d.p for d in found.values()]), strict=True):
            table[name][metric] = replace(difference, p_holm=p)
    if len(first.structures) > 1:
        means = [list(one.mean_per_case().values()) for one in (first, second)]
        table[MEAN] = {"dice": paired_difference(*means)}
    return Comparison(*names, table)
