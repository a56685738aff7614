"""``medmamba evaluate``: folders of masks in, tables and a page out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import ConfigError, InputError
from medmamba.evaluation.compare import Comparison, compare
from medmamba.evaluation.options import EvaluateOptions
from medmamba.evaluation.overlay import overlay_png
from medmamba.evaluation.page import evaluation_page
from medmamba.evaluation.report import Evaluation, Structures, evaluate_folders
from medmamba.evaluation.subgroups import Subgroups, read_subgroups
from medmamba.images import read_image, read_label_map
from medmamba.images.cases import find_cases

OnItem = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation, and what else was asked for; ``pictures`` are PNGs of the worst cases, by case id."""

    evaluation: Evaluation
    comparison: Comparison | None
    subgroups: Subgroups | None
    pictures: Mapping[str, bytes]
    folder: Path


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

    Args:
        options: see :class:`~medmamba.evaluation.options.EvaluateOptions`. With ``other``, comparison.json and .csv are
            written as well, as differences of ``other`` minus ``predictions``.
        changes: single fields of the options by name.
    """
    options = EvaluateOptions.of(options, **changes)
    folder = Path(predictions)
    masks, truth = _paths(folder), _paths(truths)
    structures = _structures_of_report(folder)
    if structures is None and options.other is not None:
        structures = _structures_of_report(options.other)
    evaluation = evaluate_folders(masks, truth, structures, options, on_case=partial(on_item, "evaluate"))
    comparison = None
    if options.other is not None:
        others, both = _paths(options.other), (folder, options.other)
        second = evaluate_folders(others, truth, evaluation.structures, options, on_case=partial(on_item, "compare"))
        first_name, second_name = map(str, both) if folder.name == options.other.name else (path.name for path in both)
        comparison = compare(evaluation, second, names=(first_name, second_name))
    groups = None if options.subgroups is None else read_subgroups(options.subgroups, evaluation)
    target = Path(output) if output is not None else folder
    evaluation.write(target)
    if comparison is not None:
        comparison.write(target)
    if groups is not None:
        write_json(target / "subgroups.json", groups.as_dict(evaluation))
    drawn = _pictures(evaluation, masks, truth, options)
    write_text(target / "evaluation.html", evaluation_page(evaluation, drawn, groups, comparison))
    return EvaluationResult(evaluation, comparison, groups, drawn, target)


def _structures_of_report(folder: Path) -> Structures | None:
    """Every foreground label, then every region, of the report.json in a folder of predictions; None without one.

    Raises ConfigError when it is damaged, or a region names a label that does not exist.
    """
    path = folder / "report.json"
    if not path.is_file():
        return None
    try:
        model: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
        labels = {str(name): int(value) for name, value in model["labels"].items()}
        regions = {
            str(name): [str(member) for member in members] for name, members in (model.get("regions") or {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a prediction report ({error}). Remove or restore it.") from error
    found: Structures = {name: (value,) for name, value in labels.items() if value != 0}
    for region, members in regions.items():
        unknown = [name for name in members if name not in labels]
        if unknown:
            raise ConfigError(f"Region {region!r} joins {unknown[0]!r}, which is not a label. Correct the region.")
        found.setdefault(region, tuple(sorted(labels[name] for name in members)))
    return found


def _pictures(
    evaluation: Evaluation, masks: Mapping[str, Path], truths: Mapping[str, Path], options: EvaluateOptions
) -> dict[str, bytes]:
    images = {} if options.images is None else _paths(options.images)
    drawn = {}
    for case_id in [case_id for case_id in evaluation.worst_first() if case_id in masks][: options.pictures]:
        truth, prediction = read_label_map(truths[case_id]), read_label_map(masks[case_id])
        image = read_image(images[case_id]).array[0] if case_id in images else None
        if image is not None and image.shape != truth.array.shape:
            raise InputError(f"{case_id}: image and truth differ in shape: {image.shape} and {truth.array.shape}.")
        drawn[case_id] = overlay_png(truth.array, prediction.array, truth.grid, list(evaluation.labels.values()), image)
    return drawn


def _paths(source: str | Path | Sequence[Path]) -> dict[str, Path]:
    return {case.case_id: case.paths[0] for case in find_cases(source)}
