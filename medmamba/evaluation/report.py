"""Evaluation of a folder of masks: Dice per case and label, as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from medmamba.atomic import write_json, write_text
from medmamba.errors import InputErrors
from medmamba.evaluation.dice import dice_per_label
from medmamba.geometry import grid_difference
from medmamba.images import LabelMap, read_label_map

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """Dice of every case and label; a structure absent from truth and prediction has nan and stays out of means."""

    labels: dict[str, int]
    cases: dict[str, dict[str, float]]

    def mean_per_label(self) -> dict[str, float]:
        """Mean Dice of each label over the cases that have one."""
        return {name: _mean([scores[name] for scores in self.cases.values()]) for name in self.labels}

    def mean_per_case(self) -> dict[str, float]:
        """Mean Dice of each case over its labels."""
        return {case_id: _mean(list(scores.values())) for case_id, scores in self.cases.items()}

    @property
    def mean_foreground(self) -> float:
        """Mean over the labels of the mean over cases."""
        return _mean(list(self.mean_per_label().values()))

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``evaluation.json`` and ``evaluation.csv`` into ``folder``."""
        record: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "metric": "Dice",
            "labels": self.labels,
            "mean_foreground": _number(self.mean_foreground),
            "mean_per_label": {name: _number(value) for name, value in self.mean_per_label().items()},
            "cases": {
                case_id: {name: _number(value) for name, value in scores.items()}
                for case_id, scores in self.cases.items()
            },
        }
        write_json(folder / "evaluation.json", record)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *self.labels, "mean"])
        means = self.mean_per_case()
        for case_id, scores in self.cases.items():
            row = [*scores.values(), means[case_id]]
            writer.writerow([case_id, *("" if math.isnan(value) else f"{value:.6f}" for value in row)])
        write_text(folder / "evaluation.csv", text.getvalue())
        return folder / "evaluation.json", folder / "evaluation.csv"


def evaluate_folders(
    predictions: Mapping[str, Path], truths: Mapping[str, Path], labels: Mapping[str, int] | None = None
) -> Evaluation:
    """Compare masks by case id. ``labels`` names the foreground values; without it every value found is a label.

    Raises InputErrors naming each missing prediction and each pair that does not lie on one grid.
    """
    problems = [
        f"{case_id}: no prediction for {path.name}. Predict this case, or evaluate against fewer truths."
        for case_id, path in truths.items()
        if case_id not in predictions
    ]
    pairs: dict[str, tuple[LabelMap, LabelMap]] = {}
    for case_id, path in truths.items():
        if case_id in predictions:
            truth, prediction = read_label_map(path), read_label_map(predictions[case_id])
            difference = grid_difference(truth.grid, prediction.grid)
            if difference is not None:
                problems.append(f"{case_id}: truth and prediction {difference}. Compare masks of the same image.")
            pairs[case_id] = (truth, prediction)
    if problems:
        raise InputErrors(problems, summary=f"{len(problems)} problem(s); nothing was evaluated.")
    foreground = {name: value for name, value in (labels or {}).items() if value != 0} or _found_labels(pairs)
    names = {value: name for name, value in foreground.items()}
    cases = {}
    for case_id, (truth, prediction) in pairs.items():
        scores = dice_per_label(truth.array, prediction.array, foreground.values())
        cases[case_id] = {names[value]: score for value, score in scores.items()}
    return Evaluation(dict(foreground), cases)


def _found_labels(pairs: Mapping[str, tuple[LabelMap, LabelMap]]) -> dict[str, int]:
    found = set()
    for truth, prediction in pairs.values():
        found |= set(np.unique(truth.array).tolist()) | set(np.unique(prediction.array).tolist())
    return {f"label_{value}": int(value) for value in sorted(found - {0})}


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
