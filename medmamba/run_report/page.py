"""The page of a run: results first, then the cases, the training, and the plan with its reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from medmamba.evaluation.overlay import overlay_png
from medmamba.geometry import Grid
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder
from medmamba.pages.render import COLOURS, number, render
from medmamba.plans.explain import summary
from medmamba.plans.labels import label_names
from medmamba.plans.schema import Plan
from medmamba.run_report.cross_validation import CrossValidation, ShownCase
from medmamba.run_report.viewer import volume
from medmamba.training.progress import read_metrics
from medmamba.training.report import curves_png

NEIGHBOURS = {"dataset.html": "the dataset", "training.html": "curves and examples", "evaluation.html": "evaluation"}


def run_page(run: RunFolder, plan: Plan, found: CrossValidation, neighbours: Sequence[str]) -> str:
    """The page; ``neighbours`` are other pages in the same folder."""
    names = label_names(plan)
    shown = list(_shown(found))
    titled = [(f"{kind}: {case.score.case_id} (Dice {number(case.score.mean)})", case) for kind, case in shown]
    ordered = sorted(found.scores, key=lambda score: (math.isnan(score.mean), score.mean))
    structures = list(found.scores[0].dice) if found.scores else []
    return render(
        "run.html",
        plan=plan,
        found=found,
        structures=structures,
        neighbours={name: NEIGHBOURS.get(name, name.removesuffix(".html")) for name in neighbours},
        results=[_result(found, name) for name in [*structures, None]],
        cases=[[one.case_id, one.fold, *map(number, one.dice.values()), number(one.mean)] for one in ordered],
        shown=[(kind, case, _picture(case, len(names))) for kind, case in shown],
        labels=names,
        volumes={"cases": [volume(title, case) for title, case in titled], "names": names, "colours": COLOURS},
        training=list(_training(run, found.configuration)),
        outputs=OutputChannels.of_plan(plan).names,
        summary=summary(plan),
    )


def _result(found: CrossValidation, structure: str | None) -> list[str]:
    mean, spread, count = found.mean(structure)
    folds = [number(found.mean(structure, fold)[0]) for fold in found.folds()]
    return [structure or "mean", f"{number(mean)} ± {number(spread)}", str(count), *folds]


def _shown(found: CrossValidation) -> Iterator[tuple[str, ShownCase]]:
    """Worst, then best cases, each once."""
    worst = {case.score.case_id for case in found.worst}
    yield from (("worst", case) for case in found.worst)
    yield from (("best", case) for case in found.best if case.score.case_id not in worst)


def _picture(case: ShownCase, labels: int) -> bytes:
    order = (1, 2, 0)  # the picture is a slice of the last axis
    depth, height, width = case.image.shape
    return overlay_png(
        case.truth.transpose(order),
        case.prediction.transpose(order),
        Grid((height, width, depth), None),
        list(range(1, labels + 1)),
        case.image.transpose(order),
    )


def _training(run: RunFolder, configuration: str) -> Iterator[dict[str, Any]]:
    for folder in run.trained_folds(configuration):
        if rows := read_metrics(folder):
            yield {"name": folder.name, "last": rows[-1], "curves": curves_png(rows)}
