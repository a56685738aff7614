"""``medmamba evaluate``: folders of masks in, tables and a page out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import InputError
from medmamba.evaluation.compare import Comparison, compare
from medmamba.evaluation.metrics import DEFAULT_TOLERANCE
from medmamba.evaluation.overlay import overlay_png
from medmamba.evaluation.page import evaluation_page
from medmamba.evaluation.report import Evaluation, evaluate_folders
from medmamba.evaluation.structures import names_of
from medmamba.evaluation.subgroups import Subgroups, read_subgroups

PICTURES = 12
"""Cases, the worst, that get a picture on the page."""

OnItem = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation, and what else was asked for."""

    evaluation: Evaluation
    comparison: Comparison | None
    subgroups: Subgroups | None
    folder: Path


def run_evaluation(
    predictions: str | Path,
    truths: str | Path | Sequence[Path],
    *,
    output: str | Path | None = None,
    other: str | Path | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    missing: Literal["fail", "empty"] = "fail",
    subgroups: str | Path | None = None,
    images: str | Path | None = None,
    pictures: int = PICTURES,
    on_item: OnItem = lambda stage, done, total: None,
) -> EvaluationResult:
    """Compare masks with truths; evaluation.json, .csv and .html land in ``output`` (default: beside the masks).

    Args:
        other: a second folder of predictions of the same cases; comparison.json and .csv are written as well, as
            differences of ``other`` minus ``predictions``.
        tolerance: of the surface Dice, in mm.
        missing: "fail", or "empty" to count a case without prediction as an empty mask.
        subgroups: a CSV with a column ``case`` and one per property.
        images: folder of the images, to lie below the outlines of the page's pictures.
        pictures: how many of the worst cases get a picture; 0 for none.
    """
    if tolerance < 0:
        raise InputError(f"--tolerance {tolerance:g} is below 0. Give millimetres, for example 1.")
    folder = Path(predictions)
    masks, truth = _paths(folder), _paths(truths)
    names = names_of(folder) or (names_of(Path(other)) if other is not None else None)
    structures = None if names is None else names.structures()
    evaluation = evaluate_folders(
        masks,
        truth,
        structures,
        tolerance=tolerance,
        missing=missing,
        on_case=lambda done, total: on_item("evaluate", done, total),
    )
    comparison = None
    if other is not None:
        second = evaluate_folders(
            _paths(Path(other)),
            truth,
            evaluation.structures,
            tolerance=tolerance,
            missing=missing,
            on_case=lambda done, total: on_item("compare", done, total),
        )
        comparison = compare(evaluation, second, names=_told_apart(folder, Path(other)))
    groups = None if subgroups is None else read_subgroups(Path(subgroups), evaluation)
    target = Path(output) if output is not None else folder
    evaluation.write(target)
    if comparison is not None:
        comparison.write(target)
    if groups is not None:
        write_json(target / "subgroups.json", groups.as_dict(evaluation))
    drawn = _pictures(evaluation, masks, truth, None if images is None else _paths(images), pictures)
    page = evaluation_page(evaluation, pictures=drawn, subgroups=groups, comparison=comparison)
    write_text(target / "evaluation.html", page)
    return EvaluationResult(evaluation, comparison, groups, target)


def _pictures(
    evaluation: Evaluation,
    masks: Mapping[str, Path],
    truths: Mapping[str, Path],
    images: Mapping[str, Path] | None,
    count: int,
) -> dict[str, bytes]:
    from medmamba.images import read_image, read_label_map

    drawn = {}
    for case_id in [case_id for case_id in evaluation.worst_first() if case_id in masks][:count]:
        truth, prediction = read_label_map(truths[case_id]), read_label_map(masks[case_id])
        image = read_image(images[case_id]).array[0] if images and case_id in images else None
        if image is not None and image.shape != truth.array.shape:
            raise InputError(f"{case_id}: image and truth differ in shape: {image.shape} and {truth.array.shape}.")
        drawn[case_id] = overlay_png(truth.array, prediction.array, truth.grid, list(evaluation.labels.values()), image)
    return drawn


def _paths(source: str | Path | Sequence[Path]) -> dict[str, Path]:
    from medmamba.images.cases import find_cases

    return {case.case_id: case.paths[0] for case in find_cases(source)}


def _told_apart(first: Path, second: Path) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return str(first), str(second)
