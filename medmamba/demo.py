"""`medmamba demo`: plan, train, predict and evaluate on a small real dataset, with an overview image."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from medmamba.compute.free_memory import gib, peak_of_process
from medmamba.disk.lock import FolderLock
from medmamba.disk.own_files import OwnFiles
from medmamba.errors import InputError

if TYPE_CHECKING:
    from medmamba.command_options import DemoOptions
    from medmamba.evaluation.report import Evaluation
    from medmamba.pages.picture import Picture
    from medmamba.training.progress import StepReport

STEPS_PER_EPOCH = 100
CASES_PER_ROW = 5
"""Of the overview."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it is."""

    evaluation: "Evaluation"
    masks: Path
    overview: Path
    seconds: dict[str, float]
    peak_memory_gib: float | None
    """None where the system does not say."""


def example_data() -> Path:
    """The hippocampus dataset: in a checkout under examples/, else where the installation put it."""
    checkout = Path(__file__).resolve().parent.parent / "examples" / "data" / "hippocampus"
    if (checkout / "dataset.json").is_file():
        return checkout
    try:
        installed = Path(str(files("medmamba.demo_data")))
    except ModuleNotFoundError:
        installed = checkout
    if not (installed / "dataset.json").is_file():
        raise InputError("The demo's data was not installed. Install medmamba again, or give a dataset with --data.")
    return installed


def run_demo(
    options: "DemoOptions",
    *,
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
    on_step: "Callable[[StepReport], None]" = lambda report: None,
) -> DemoResult:
    """Train on the dataset's training list, predict its test list and compare with ``labelsTs``.

    The test cases are read for the first time when they are predicted.
    """
    from medmamba.datasets import read_dataset
    from medmamba.disk.atomic import write_bytes
    from medmamba.evaluation.options import EvaluateOptions
    from medmamba.evaluation.run import run_evaluation
    from medmamba.inference.folder.run import predict
    from medmamba.inference.options import PredictOptions
    from medmamba.planning.run import plan
    from medmamba.training.config import TrainConfig
    from medmamba.training.fold import train

    dataset, output = options.data or example_data(), options.output
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder. Give a dataset with --data, or leave it out.")
    run, masks, overview = output / "run", output / "masks", output / "overview.png"
    own = OwnFiles(output, options.overwrite)
    own.refuse_foreign([overview, output / "evaluation.html"])
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def end_of(stage: str) -> None:
        seconds[stage] = time.monotonic() - started - sum(seconds.values())

    with FolderLock(output):
        plan(dataset, run, network=options.network, overwrite=options.overwrite, on_item=on_item)
        end_of("plan")
        config = TrainConfig(max_minutes=options.minutes, steps=options.steps, steps_per_epoch=STEPS_PER_EPOCH)
        train(run, fold="all", use_scan=options.use_scan, config=config, restart=True, on_step=on_step)
        end_of("train")
        cases = [case.images[0] for case in read_dataset(dataset).test][: options.test_cases]
        predict(run, cases, masks, PredictOptions(overwrite=options.overwrite), on_item=on_item)
        end_of("predict")
        truths = [dataset / "labelsTs" / path.name for path in cases]
        shown = EvaluateOptions(images=dataset / "imagesTs", pictures=len(truths), overwrite=options.overwrite)
        found = run_evaluation(masks, truths, shown, output=output)
        with own.recording():
            write_bytes(overview, _overview(found.evaluation, found.pictures))
        end_of("evaluate")
    return DemoResult(found.evaluation, masks, overview, seconds, gib(peak_of_process()))


def _overview(evaluation: "Evaluation", pictures: "Mapping[str, Picture]") -> bytes:
    """PNG of the outlined slices of evaluation.html, several in a row, each below its case's name and Dice."""
    from medmamba.pages.picture import sheet
    from medmamba.pages.render import COLOURS

    means = evaluation.mean_per_case()
    shown = {f"{case_id}   Dice {means[case_id]:.3f}": pictures[case_id].png for case_id in sorted(pictures)}
    return sheet(shown, {"truth": "white", **dict(zip(evaluation.labels, COLOURS, strict=False))}, CASES_PER_ROW)
