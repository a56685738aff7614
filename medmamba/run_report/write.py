"""RUN/report/index.html of ``medmamba report RUN``: results, cases, training, and the plan with its reasons.

A volume (I, J, K) lies in the page as one PNG of I slices below each other: red holds the image, green the truth, blue
the prediction. The viewer (pages/templates/viewer.js) reads the pixels back and draws any slice along any axis.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medmamba.command_options import ReportOptions
from medmamba.disk.atomic import write_json, write_text
from medmamba.disk.lock import FolderLock
from medmamba.evaluation.metrics import as_json
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder
from medmamba.pages.picture import Picture, draw_case
from medmamba.pages.render import COLOURS, data_uri, grey, number, png_of, render
from medmamba.plans.explain import summary
from medmamba.plans.schema import Plan
from medmamba.preprocessing.labels import label_names
from medmamba.run_report.cross_validation import CrossValidation, ShownCase, cross_validate
from medmamba.training.observers import curves_png
from medmamba.training.progress import read_metrics

PAGE = "index.html"
NEIGHBOURS = {"dataset.html": "the dataset", "training.html": "curves and examples", "evaluation.html": "evaluation"}
LONGEST_EDGE = 160
"""Larger volumes are thinned out for the page."""


def write_report(
    run: str | Path,
    options: ReportOptions | None = None,
    *,
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **changes: Any,
) -> CrossValidation:
    """Write RUN/report/index.html and cross_validation.json. Raises InputError as :func:`cross_validate` does."""
    folder = RunFolder(Path(run))
    plan, options = folder.read_plan(), ReportOptions.of(options, **changes)
    own = folder.own_files(overwrite=options.overwrite)
    target = folder.path / "report"
    own.refuse_foreign([target / PAGE, target / "cross_validation.json"])
    with FolderLock(target):
        folder.check_unchanged(plan)
        found = cross_validate(folder, options, on_item)
    neighbours = sorted(path.name for path in target.glob("*.html") if path.name != PAGE)
    cases = [asdict(score) for score in found.scores]
    for case in cases:
        case["dice"] = {name: as_json(value) for name, value in case["dice"].items()}
    record = {"configuration": found.configuration, "held_out": found.held_out, "cases": cases}
    with own.recording():
        write_json(target / "cross_validation.json", record)
        write_text(target / PAGE, run_page(folder, plan, found, neighbours))
    return found


def run_page(run: RunFolder, plan: Plan, found: CrossValidation, neighbours: Sequence[str]) -> str:
    """The page; ``neighbours`` are other pages in the same folder."""
    names = label_names(plan)
    worst = {case.score.case_id for case in found.worst}
    shown = [("worst", case) for case in found.worst]
    shown += [("best", case) for case in found.best if case.score.case_id not in worst]
    ordered = sorted(found.scores, key=lambda score: (math.isnan(score.mean), score.mean))
    structures = list(found.scores[0].dice) if found.scores else []
    metrics = {folder.name: read_metrics(folder) for folder in run.trained_folds(found.configuration)}
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
        volumes={"cases": [volume(kind, case) for kind, case in shown], "names": names, "colours": COLOURS},
        training=[
            {"name": name, "last": rows[-1], "curves": curves_png(rows)} for name, rows in metrics.items() if rows
        ],
        outputs=OutputChannels.of_plan(plan).names,
        summary=summary(plan),
    )


def _result(found: CrossValidation, structure: str | None) -> list[str]:
    mean, deviation, count = found.mean(structure)
    folds = [number(found.mean(structure, fold)[0]) for fold in found.folds()]
    return [structure or "mean", f"{number(mean)} ± {number(deviation)}", str(count), *folds]


def _picture(case: ShownCase, labels: int) -> Picture:
    values = range(1, labels + 1)
    return draw_case(case.display, values, coloured=case.prediction, white=case.truth, image=case.image)


def volume(kind: str, case: ShownCase) -> dict[str, Any]:
    """One case as the viewer reads it."""
    steps = tuple(max(1, -(-size // LONGEST_EDGE)) for size in case.display.grid.shape)
    thin = tuple(slice(None, None, step) for step in steps)
    image, truth, prediction = (case.display.volume(one)[thin] for one in (case.image[0], case.truth, case.prediction))
    sheet = np.stack([grey(image), truth.astype(np.uint8), prediction.astype(np.uint8)], axis=-1)
    return {
        "title": f"{kind}: {case.score.case_id} (Dice {number(case.score.mean)})",
        "shape": list(image.shape),
        "letters": list(case.display.letters),
        "spacing": [mm * step for mm, step in zip(case.display.spacing, steps, strict=True)],
        "sheet": data_uri(png_of(sheet.reshape(-1, image.shape[2], 3))),
    }
