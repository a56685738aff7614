"""The evaluation of a folder of masks, every metric per case and structure, and paired differences of two folders."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medmamba.datasets.load import misnamed
from medmamba.disk.atomic import write_json
from medmamba.disk.table import write_table
from medmamba.errors import InputError, InputErrors, MedmambaError, counted
from medmamba.evaluation.calibration import VoxelCalibration
from medmamba.evaluation.metrics import COUNTS, METRICS, Score, as_json, score_case
from medmamba.evaluation.options import EvaluateOptions
from medmamba.evaluation.statistics import PairedDifference, Summary, holm, mean_of_known, paired_difference, summarise
from medmamba.geometry import grid_difference
from medmamba.images import ReadOptions, read_label_map
from medmamba.images.cases import PROBABILITIES, UNCERTAINTY

Structures = dict[str, tuple[int, ...]]
"""Name of each structure and its label values: one, or those joined by a region."""

SCHEMA_VERSION = 3
LESION_ML = (0.1, 1.0, 10.0)
"""Limits between small and large lesions, in millilitres: spheres of 6, 12 and 27 mm."""
LESION_VOXELS = (10.0, 100.0, 1000.0)
"""The same where images have no millimetres."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of every case and structure."""

    structures: Structures
    cases: dict[str, dict[str, Score]]
    options: EvaluateOptions = field(default_factory=EvaluateOptions)
    missing: tuple[str, ...] = field(default=())
    """Cases without a prediction that were counted as empty masks, on request."""
    warnings: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, int]:
        """Names and values of the structures that are a single label."""
        return {name: values[0] for name, values in self.structures.items() if len(values) == 1}

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that apply to one of the images: millimetres, pixels, or both."""
        scores = [score for found in self.cases.values() for score in found.values()]
        return [name for name in METRICS if not scores or any(score.values[name] is not None for score in scores)]

    def tolerances(self) -> str:
        """The tolerances of the surface Dice of these images, as "1 mm"."""
        used = {"nsd": f"{self.options.tolerance_mm:g} mm", "nsd_px": f"{self.options.tolerance_in_pixels:g} px"}
        return ", ".join(text for name, text in used.items() if name in self.metrics)

    def values(self, metric: str, structure: str, cases: Iterable[str] | None = None) -> list[float]:
        """One metric of one structure over some cases or all, in their order; nan where undefined."""
        chosen = self.cases if cases is None else cases
        return [self.cases[case_id][structure].value(metric) for case_id in chosen]

    def summary(self, metric: str, structure: str, cases: Iterable[str] | None = None) -> Summary:
        """Mean, median and interval of one metric of one structure, over some cases or all."""
        return summarise(self.values(metric, structure, cases))

    def summaries(self, metrics: Iterable[str], cases: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """The summaries by structure and metric, for strict JSON."""
        return {
            name: {metric: as_json(self.summary(metric, name, cases)) for metric in metrics} for name in self.structures
        }

    def mean_per_label(self, metric: str = "dice") -> dict[str, float]:
        """Mean of each structure over the cases where it is defined and finite."""
        return {name: mean_of_known(self.values(metric, name)) for name in self.structures}

    def mean_per_case(self, metric: str = "dice") -> dict[str, float]:
        """Mean of each case over its structures."""
        return {
            case_id: mean_of_known(score.value(metric) for score in scores.values())
            for case_id, scores in self.cases.items()
        }

    def lesions_by_size(self, structure: str) -> list[dict[str, Any]]:
        """True lesions of each size (ml, or voxels for images without millimetres) and how many of them were found."""
        voxels = any(scores[structure].voxel_ml is None for scores in self.cases.values())
        limits = LESION_VOXELS if voxels else LESION_ML
        sizes = [
            (size * (1 if voxels else scores[structure].voxel_ml or 1), hit)
            for scores in self.cases.values()
            for size, hit in scores[structure].lesions.sizes
        ]
        rows = []
        for low, high in zip((0.0, *limits), (*limits, None), strict=True):
            hits = [hit for size, hit in sizes if low <= size < (high or math.inf)]
            row: dict[str, Any] = {"from": low, "to": high, "unit": "voxels" if voxels else "ml", "lesions": len(hits)}
            rows.append({**row, "found": sum(hits), "sensitivity": sum(hits) / len(hits) if hits else None})
        return rows

    @property
    def mean_foreground(self) -> float:
        """Mean Dice over the structures of the mean over cases."""
        return mean_of_known(self.mean_per_label().values())

    def worst_first(self) -> list[str]:
        """Case ids by mean Dice, the lowest first; cases without any structure last."""
        means = self.mean_per_case()
        return sorted(self.cases, key=lambda case_id: (math.isnan(means[case_id]), means[case_id], case_id))

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for strict JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "metrics": {
                name: {"title": m.title, "unit": m.unit, "better": m.better, "meaning": m.meaning}
                for name, m in METRICS.items()
            },
            "nsd_tolerance_mm": self.options.tolerance_mm,
            "nsd_tolerance_px": self.options.tolerance_in_pixels,
            "labels": self.labels,
            "regions": {name: list(values) for name, values in self.structures.items() if len(values) > 1},
            "counted_as_empty": list(self.missing),
            "warnings": list(self.warnings),
            "mean_foreground": as_json(self.mean_foreground),
            "mean_per_label": {name: as_json(value) for name, value in self.mean_per_label().items()},
            "summary": self.summaries(METRICS),
            "lesions_by_size": {name: self.lesions_by_size(name) for name in self.structures},
            "cases": {
                case_id: {name: score.as_dict() for name, score in scores.items()}
                for case_id, scores in self.cases.items()
            },
        }

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json``, ``evaluation.csv`` (a row per case and structure) and ``lesions.csv``."""
        write_json(folder / "evaluation.json", self.as_dict())
        rows = [
            [case_id, name, *map(_cell, score.values.values()), *(_cell(getattr(score, key)) for key in COUNTS)]
            for case_id, scores in self.cases.items()
            for name, score in scores.items()
        ]
        write_table(folder / "evaluation.csv", ["case", "structure", *METRICS, *COUNTS], rows)
        fields = ["from", "to", "unit", "lesions", "found", "sensitivity"]
        sizes = [
            [name, *(row[key] for key in fields)] for name in self.structures for row in self.lesions_by_size(name)
        ]
        write_table(folder / "lesions.csv", ["structure", *fields], sizes)


def _products(files: Collection[str]) -> set[str]:
    """Names of files that `medmamba predict` writes beside a mask that is among them."""
    return {f"{name}{ending}" for name in files for ending in (PROBABILITIES, UNCERTAINTY)} & set(files)


def evaluate_folders(
    predictions: Mapping[str, Path],
    truths: Mapping[str, Path],
    structures: Structures | None = None,
    options: EvaluateOptions | None = None,
    *,
    reading: ReadOptions | None = None,
    ignore: int | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
    voxels: VoxelCalibration | None = None,
) -> Evaluation:
    """Compare masks by case id, one case in memory at a time; default ``structures``: every label value found.

    ``options``: its tolerances and ``missing`` are used. Voxels where the truth is ``ignore`` are left out.
    ``voxels`` sees every mask with its truth. Raises InputErrors naming every problem of every case.
    """
    options, reading = options or EvaluateOptions(), reading or ReadOptions()
    products = _products(truths)  # of a prediction that serves as truth
    truths = {case_id: path for case_id, path in truths.items() if case_id not in products}
    absent = [case_id for case_id in truths if case_id not in predictions]
    named = structures is not None
    of_truths, of_predictions = dict[int, str](), dict[int, str]()  # label values, and the first case of each
    problems: list[str] = []
    if options.missing == "fail":
        cure = "Predict it, or count it as empty (--missing empty)."
        problems = [f"{case_id}: no prediction for {truths[case_id].name}. {cure}" for case_id in absent]
        truths = {case_id: path for case_id, path in truths.items() if case_id in predictions}
    if structures is None:
        files = [*truths.values(), *(predictions[name] for name in truths if name in predictions)]
        structures = _structures_in(files, reading)
    cases: dict[str, dict[str, Score]] = {}
    warnings: list[str] = []
    if left := sorted(products):
        what = "beside truths taken for a prediction's probabilities or uncertainty, and not evaluated"
        warnings.append(f"{counted(len(left), 'file')} {what}, the first is {left[0]}.")
    if spare := sorted(set(predictions) - set(truths) - _products(predictions)):
        warnings.append(f"{counted(len(spare), 'prediction')} without a truth not evaluated, the first is {spare[0]}.")
    for done, (case_id, path) in enumerate(truths.items()):
        on_case(done, len(truths))
        try:
            truth = read_label_map(path, reading)
            found = read_label_map(predictions[case_id], reading) if case_id in predictions else None
        except MedmambaError as error:
            problems.append(str(error))
            continue
        if named:
            values = {name: members[0] for name, members in structures.items() if len(members) == 1}
            problems += misnamed(truth, values, f"{case_id}: {path.name}")
        of_truths = dict.fromkeys(truth.counts(), case_id) | of_truths
        of_predictions = dict.fromkeys({} if found is None else found.counts(), case_id) | of_predictions
        if found is not None and (difference := grid_difference(truth.grid, found.grid)):
            placed = truth.on_grid_of(found, match_labels=True)
            if placed is None:
                problems.append(f"{case_id}: truth and prediction {difference}. Compare masks of the same image.")
            else:
                warnings.append(f"{case_id}: truth and prediction {difference}; the truth was put on the same grid.")
                truth = placed
        if not problems:
            prediction = np.zeros_like(truth.array) if found is None else found.array
            cases[case_id] = score_case(truth.array, prediction, truth.grid, structures, options, ignore=ignore)
            if voxels is not None and found is not None:
                voxels.see(case_id, found, truth.array)
    on_case(len(truths), len(truths))
    if ignore is not None and of_truths.pop(ignore, None) is not None:
        warnings.append(f"Voxels of the label value {ignore}, which is to be ignored, were left out.")
    if named:
        of_predictions = {value: "" for values in structures.values() for value in values}
    warnings += _label_sets(of_truths, of_predictions, problems if named else [])
    warnings += [] if voxels is None else voxels.warnings
    if problems:
        raise InputErrors(*problems, f"{counted(len(problems), 'problem')}; nothing was evaluated.")
    return Evaluation(structures, cases, options, tuple(absent), tuple(warnings))


@dataclass(frozen=True)
class Comparison:
    """Differences, second minus first, by structure (and for the mean of them) and metric."""

    first: str
    second: str
    differences: dict[str, dict[str, PairedDifference]]

    def write(self, folder: Path) -> None:
        """Write ``comparison.json`` and ``comparison.csv``."""
        record = {
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
        write_json(folder / "comparison.json", record)
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
        raise InputError(f"The evaluations differ in cases; {only[0]} is in one only. Evaluate the same cases.")
    if not first.cases:
        raise InputError("There is no case to compare. Give truths that both folders have masks for.")
    table: dict[str, dict[str, PairedDifference]] = {name: {} for name in first.structures}
    for metric in first.metrics:
        found = [paired_difference(first.values(metric, name), second.values(metric, name)) for name in table]
        for name, difference, p in zip(table, found, holm([one.p for one in found]), strict=True):
            table[name][metric] = replace(difference, p_holm=p)
    if len(first.structures) > 1:
        means = [list(one.mean_per_case().values()) for one in (first, second)]
        table["mean of structures"] = {"dice": paired_difference(*means)}
    return Comparison(*names, table)


def _label_sets(truths: Mapping[int, str], predictions: Mapping[int, str], problems: list[str]) -> list[str]:
    """Warnings for label values of truths that no prediction has; a problem, and a warning, if all are such."""
    strange = [value for value in truths if value not in (0, *predictions)]
    if strange and any(predictions) and not any(value and value in predictions for value in truths):
        ours = ", ".join(str(value) for value in sorted(predictions) if value)
        problem = f"Truths hold label {', '.join(map(str, sorted(strange)[:9]))}, predictions {ours}: none in common."
        problems.append(f"{problem} Give both the same values.")
        return [problem]
    return [f"Label value {value} of truths, the first is {truths[value]}, is in no prediction." for value in strange]


def _structures_in(paths: list[Path], reading: ReadOptions) -> Structures:
    """A structure per label value other than 0, for masks whose labels nobody has named."""
    found: set[int] = set()
    for path in paths:
        with suppress(MedmambaError):  # reported when its case is compared
            found |= set(read_label_map(path, reading).counts())
    return {f"label_{value}": (int(value),) for value in sorted(found - {0})}


def _cell(value: float | int | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"
