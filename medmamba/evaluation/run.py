"""``medmamba evaluate``: folders of masks in, tables and a page out."""

import math
import os
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

from medmamba.datasets.table import read_csv
from medmamba.disk.atomic import make_folder, write_json, write_text
from medmamba.disk.lock import FolderLock
from medmamba.disk.own_files import OwnFiles, refuse_dataset_folder
from medmamba.errors import InputError, counted
from medmamba.evaluation.calibration import VoxelCalibration, VoxelScores
from medmamba.evaluation.expectations import ExpectationScores, ExpectingReport, score_expectations
from medmamba.evaluation.metrics import METRICS, Metric, Score
from medmamba.evaluation.options import MOST_PICTURE_MIB, EvaluateOptions
from medmamba.evaluation.report import Comparison, Evaluation, Structures, compare, evaluate_folders
from medmamba.evaluation.statistics import Summary
from medmamba.geometry.display import Display
from medmamba.images import ReadOptions, read_image, read_label_map
from medmamba.images.cases import PROBABILITIES, UNCERTAINTY, find_cases
from medmamba.pages.picture import Picture, draw_case
from medmamba.pages.render import number, render
from medmamba.plans.json_record import as_written, read_stored
from medmamba.plans.schema import Reading

OnItem = Callable[[str, int, int], None]
CASE_COLUMNS = ("case", "case_id", "id", "name")
EXPECTED = "expected_quality.json"
REPORT = ("prediction report", "Remove or restore it.")
"""What a report.json beside masks is, and what to do with a damaged one."""
MOST_GROUPS = 12
"""A column with more different values is split at its median if it holds numbers, and left out if not."""
Subgroups = dict[str, dict[str, list[str]]]
"""For each column of the table and each of its groups: the case ids."""


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation with optional comparison and subgroups; ``pictures`` are PNGs of the worst cases by case id.

    ``expectations`` are scores by structure, and of all masks together ("all"); none where the masks' report.json
    expects nothing. ``voxels`` are scores of the chances of error of their voxels, where maps of it or probabilities
    lie beside them.
    """

    evaluation: Evaluation
    comparison: Comparison | None
    subgroups: Subgroups
    pictures: Mapping[str, Picture]
    folder: Path
    expectations: Mapping[str, ExpectationScores]
    voxels: Mapping[str, VoxelScores]


def run_evaluation(
    predictions: str | Path,
    truths: str | Path | Sequence[Path],
    options: EvaluateOptions | None = None,
    *,
    output: str | Path | None = None,
    on_item: OnItem = lambda stage, done, total: None,
    **changes: Any,
) -> EvaluationResult:
    """Compare masks with truths; evaluation.json, .csv and .html land in ``output`` (default: beside the masks).

    With ``other`` comparison.json and .csv are written as well, as differences of ``other`` minus ``predictions``;
    ``changes`` are single fields of the options by name.
    """
    options = EvaluateOptions.of(options, **changes)
    folder = Path(predictions)
    own = OwnFiles(target := folder if output is None else Path(output), options.overwrite)
    refuse_dataset_folder(target)
    own.refuse_foreign(target / name for name in _outputs(options))
    with ExitStack() as locks:
        if os.access(folder / ".lock", os.W_OK):  # present while masks are being written
            locks.enter_context(FolderLock(folder, shared=True))
        masks, truth = _paths(folder), _paths(truths)
        others = {} if options.other is None else _paths(options.other)  # all is refused before an image is read
        images = {} if options.images is None else _paths(options.images)
        if options.subgroups is not None:
            read_subgroups(options.subgroups, [name for name in truth if options.missing == "empty" or name in masks])
        structures, reading, ignore = _of_report(folder)
        report, changed = ExpectingReport(), []
        if (path := folder / "report.json").is_file():
            report = read_stored(path, ExpectingReport, *REPORT)
            changed = report.changed(masks)
        regions = structures is not None and any(len(values) > 1 for values in structures.values())
        beside = {f"{case}{end}" for case in changed for end in (UNCERTAINTY, PROBABILITIES)}
        unchanged = {name: path for name, path in masks.items() if name not in beside}
        seen = VoxelCalibration(unchanged, reading, 0 if structures is None else len(structures) + 1, regions, ignore)
        if structures is None and options.other is not None:
            structures, reading, ignore = _of_report(options.other)
        evaluated = partial(evaluate_folders, truths=truth, options=options, reading=reading, ignore=ignore)
        evaluation = evaluated(masks, structures=structures, on_case=partial(on_item, "evaluate"), voxels=seen)
        if structures is None and isinstance(truths, str | Path) and (Path(truths) / "report.json").is_file():
            line = f"{truths} holds the report.json of a prediction, {folder} does not: are the folders exchanged?"
            evaluation = replace(evaluation, warnings=(line, *evaluation.warnings))
        if changed:
            line = (
                f"{counted(len(changed), 'mask')} changed since the prediction, the first is {changed[0]}: what "
                f"{folder / 'report.json'} expects of them is left out."
            )
            evaluation = replace(evaluation, warnings=(line, *evaluation.warnings))
        comparison = None
        if options.other is not None:
            both = folder, options.other
            second = evaluated(others, structures=evaluation.structures, on_case=partial(on_item, "compare"))
            first_name, second_name = (
                map(str, both) if folder.name == options.other.name else (path.name for path in both)
            )
            comparison = compare(evaluation, second, names=(first_name, second_name))
        groups: Subgroups = (
            {} if options.subgroups is None else read_subgroups(options.subgroups, list(evaluation.cases))
        )
        make_folder(target)
        locks.enter_context(own.recording())
        evaluation.write(target)
        if comparison is not None:
            comparison.write(target)
        if groups:
            write_json(target / "subgroups.json", _summaries(evaluation, groups))
        expectations, voxels = _expectations(report, evaluation, changed), seen.scores()
        if expectations or voxels:
            scores, chances = (
                {name: found.as_dict() for name, found in part.items()} for part in (expectations, voxels)
            )
            write_json(target / EXPECTED, {"schema_version": 1, "scores": scores, "voxels": chances})
        drawn = _pictures(evaluation, masks, truth, images, options, reading)
        write_text(target / "evaluation.html", _page(evaluation, drawn, groups, comparison, expectations, voxels))
        return EvaluationResult(evaluation, comparison, groups, drawn, target, expectations, voxels)


def _outputs(options: EvaluateOptions) -> list[str]:
    compared = [] if options.other is None else ["comparison.json", "comparison.csv"]
    grouped = [] if options.subgroups is None else ["subgroups.json"]
    return ["evaluation.json", "evaluation.csv", "evaluation.html", "lesions.csv", EXPECTED, *compared, *grouped]


def _expectations(
    report: ExpectingReport, evaluation: Evaluation, changed: Collection[str]
) -> dict[str, ExpectationScores]:
    """Scores of what a report expects of its masks but the changed ones, of all structures and of each."""
    masks = report.masks(evaluation, changed)
    groups = {"all": masks} | {
        name: [mask for mask in masks if mask.structure == name] for name in evaluation.structures
    }
    return {name: score_expectations(found) for name, found in groups.items() if found}


def read_subgroups(path: Path, cases: Sequence[str]) -> Subgroups:
    """Groups of the cases by the columns of a CSV with a column ``case``. Raises InputError if invalid."""
    rows = _rows(path)
    missing = [case_id for case_id in cases if case_id not in rows]
    if missing:
        raise InputError(f"{path}: {len(missing)} case(s) are not in the table, the first is {missing[0]}. Add them.")
    columns: Subgroups = {}
    for column in next(iter(rows.values())):
        values = {case_id: rows[case_id][column].strip() or "unknown" for case_id in cases}
        if (groups := _groups_of(values)) is not None:
            columns[column] = groups
    if not columns:
        raise InputError(f"{path}: no column that forms groups. Add columns such as site, scanner or sex.")
    return columns


def _groups_of(values: Mapping[str, str]) -> dict[str, list[str]] | None:
    if len(set(values.values())) <= MOST_GROUPS:
        names = sorted(set(values.values()))
        return {group: [case_id for case_id, value in values.items() if value == group] for group in names}
    try:
        numbers = {case_id: float(value) for case_id, value in values.items() if value != "unknown"}
    except ValueError:
        return None
    middle = median(numbers.values())
    groups = {
        f"up to {middle:g}": [case_id for case_id, number in numbers.items() if number <= middle],
        f"above {middle:g}": [case_id for case_id, number in numbers.items() if number > middle],
        "unknown": [case_id for case_id, value in values.items() if value == "unknown"],
    }
    return {group: cases for group, cases in groups.items() if cases}


def _rows(path: Path) -> dict[str, dict[str, str]]:
    names, *lines = read_csv(path, str(path)) or [[]]
    column = next((name for name in names if name.strip().lower() in CASE_COLUMNS), None)
    if column is None:
        raise InputError(f"{path}: no column called {' or '.join(CASE_COLUMNS)}. Name the column of case ids.")
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        row = dict(zip_longest(names, line[: len(names)], fillvalue=""))
        case_id = row.pop(column).strip()
        if case_id in rows:
            raise InputError(f"{path}: {case_id} stands in two rows. Keep one row per case.")
        rows[case_id] = row
    if not rows:
        raise InputError(f"{path}: an empty table. Give one row per case.")
    return rows


def _summaries(evaluation: Evaluation, subgroups: Subgroups) -> dict[str, Any]:
    """For strict JSON: column, group, number of cases, structure, metric."""
    found: dict[str, Any] = {column: {} for column in subgroups}
    for column, groups in subgroups.items():
        for group, cases in groups.items():
            found[column][group] = {"cases": len(cases), "summary": evaluation.summaries(evaluation.metrics, cases)}
    return found


def _of_report(folder: Path) -> tuple[Structures | None, ReadOptions, int | None]:
    """Structures by the report.json in a folder of predictions, how files of the dataset are read, the ignored value.

    Structures are every foreground label, then every region; None without. Raises ConfigError if it is damaged.
    """
    path = folder / "report.json"
    if not path.is_file():
        return None, ReadOptions(any_spacing=True), None  # spacings that agree are compared as they are
    report = read_stored(path, dict[str, Any], *REPORT)
    with as_written(path, *REPORT):
        model = report["model"]
        reading = Reading.model_validate(model.get("settings", {}).get("reading", {}))
        labels = {str(name): int(value) for name, value in model["labels"].items()}
        found: Structures = {name: (value,) for name, value in labels.items() if value != 0}
        for region, members in (model.get("regions") or {}).items():
            found.setdefault(str(region), tuple(sorted(labels[str(name)] for name in members)))
        ignore = None if model.get("ignore") is None else int(model["ignore"])
    return found, ReadOptions.of(reading), ignore


def _pictures(
    evaluation: Evaluation,
    masks: Mapping[str, Path],
    truths: Mapping[str, Path],
    images: Mapping[str, Path],
    options: EvaluateOptions,
    reading: ReadOptions,
) -> dict[str, Picture]:
    images = {**{name.removesuffix("_0000"): path for name, path in images.items()}, **images}  # of nnU-Net: channel 0
    drawn: dict[str, Picture] = {}
    for case_id in [case_id for case_id in evaluation.worst_first() if case_id in masks][: options.pictures]:
        if sum(len(picture.png) for picture in drawn.values()) > MOST_PICTURE_MIB * 2**20:
            break
        prediction = read_label_map(masks[case_id], reading)
        truth = read_label_map(truths[case_id], reading)
        truth = truth.on_grid_of(prediction, match_labels=True) or truth
        image = read_image(images[case_id], reading).array if case_id in images else None
        if image is not None and image.shape[1:] != truth.array.shape:
            raise InputError(f"{case_id}: image and truth differ in shape: {image.shape[1:]} and {truth.array.shape}.")
        drawn[case_id] = draw_case(
            Display(truth.grid),
            list(evaluation.labels.values()),
            coloured=prediction.array,
            white=truth.array,
            image=image,
        )
    return drawn


def _paths(source: str | Path | Sequence[Path]) -> dict[str, Path]:
    """Masks by the name of their case, whichever way its accents are stored."""
    cases = find_cases(source)
    names = {unicodedata.normalize("NFC", case.case_id): case.paths[0] for case in cases}
    return names if len(names) == len(cases) else {case.case_id: case.paths[0] for case in cases}


def _page(
    evaluation: Evaluation,
    pictures: Mapping[str, Picture],
    subgroups: Subgroups,
    comparison: Comparison | None,
    expectations: Mapping[str, ExpectationScores],
    voxels: Mapping[str, VoxelScores],
) -> str:
    """The page; ``pictures`` are PNGs of some cases, shown beside their numbers."""
    metrics = [METRICS[name] for name in evaluation.metrics if METRICS[name].tables != "none"]
    (_, *headings), *summary = summary_rows(evaluation, metrics)
    cases = {
        case_id: [_row(name, score, metrics) for name, score in evaluation.cases[case_id].items()]
        for case_id in evaluation.worst_first()
    }
    return render(
        "evaluation.html",
        evaluation=evaluation,
        headings=headings,
        structures=list(evaluation.structures),
        summary=summary,
        lesions=list(_lesions(evaluation)),
        expectations={name: (found, *_reliability(found)) for name, found in expectations.items()},
        voxels=voxels,
        voxel_rows=[_voxel_row(name, found) for name, found in voxels.items()],
        comparison=comparison,
        differences=[] if comparison is None else list(difference_rows(comparison)),
        subgroups={column: list(_groups(evaluation, groups)) for column, groups in subgroups.items()},
        pictures=pictures,
        means=evaluation.mean_per_case(),
        cases=cases,
        every_case=[[case_id, *row] for case_id, rows in cases.items() for row in rows],
    )


def _reliability(scores: ExpectationScores) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the scores, and of the groups by expected Dice."""
    groups = [[str(count), number(expected, 4), number(true, 4)] for count, expected, true in scores.reliability]
    return scores.rows(), groups


def _voxel_row(name: str, found: VoxelScores) -> list[str]:
    shares = (f"{found.ece:.4f}", f"{found.brier:.4f}", f"{found.mean_chance:.2%}", f"{found.errors:.2%}")
    return [name, str(found.voxels), *shares]


def summary_rows(evaluation: Evaluation, metrics: Sequence[Metric]) -> list[list[str]]:
    """Mean and 95% interval of metrics per structure, header first."""
    rows = [["structure", *(metric.heading for metric in metrics)]]
    for name in evaluation.structures:
        rows.append([name, *(_interval(evaluation.summary(metric.name, name)) for metric in metrics)])
    return rows


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


def difference_rows(comparison: Comparison) -> Iterator[list[str]]:
    """Paired differences per structure and metric: names, both means, difference, interval, p values, counts."""
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
