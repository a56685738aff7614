"""RUN/report/index.html of ``medmamba report RUN``: results, cases, training, and the plan with its reasons."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medmamba.command_options import ReportOptions
from medmamba.disk.atomic import write_json, write_text
from medmamba.disk.lock import FolderLock
from medmamba.evaluation.metrics import as_json
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder
from medmamba.pages.picture import Picture, draw_case
from medmamba.pages.render import number, render
from medmamba.plans.explain import summary
from medmamba.plans.schema import Plan
from medmamba.preprocessing.labels import label_names
from medmamba.run_report.cross_validation import CrossValidation, ShownCase, cross_validate
from medmamba.run_report.volumes import viewer_data
from medmamba.training.observers import curves_png
from medmamba.training.progress import read_metrics

PAGE = "index.html"
NEIGHBOURS = {"dataset.html": "the dataset", "training.html": "curves and examples", "evaluation.html": "evaluation"}


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
        volumes=viewer_data(plan, shown),
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
