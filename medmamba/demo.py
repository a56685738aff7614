"""`medmamba demo`: plan, train, predict and evaluate on a small real dataset, with an overview image."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from medmamba.disk.lock import FolderLock
from medmamba.errors import InputError

if TYPE_CHECKING:
    from medmamba.command_options import DemoOptions
    from medmamba.evaluation.report import Evaluation
    from medmamba.training.progress import StepReport

STEPS_PER_EPOCH = 100


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it is."""

    evaluation: Evaluation
    masks: Path
    overview: Path
    seconds: dict[str, float]
    peak_memory_gib: float


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
    options: DemoOptions,
    *,
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> DemoResult:
    """Train on the dataset's training list, predict its test list and compare with ``labelsTs``.

    The test cases are read for the first time when they are predicted.
    """
    from medmamba.datasets import read_dataset
    from medmamba.evaluation.overview import save_overview
    from medmamba.evaluation.run import run_evaluation
    from medmamba.inference.folder.run import predict
    from medmamba.inference.options import PredictOptions
    from medmamba.planning.run import plan
    from medmamba.training.config import TrainConfig
    from medmamba.training.run import train

    dataset, output = options.data or example_data(), options.output
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder. Give a dataset with --data, or leave it out.")
    run, masks = output / "run", output / "masks"
    seconds: dict[str, float] = {}
    with FolderLock(output):
        started = time.monotonic()
        plan(dataset, run, network=options.network, on_item=on_item)
        seconds["plan"] = time.monotonic() - started

        started = time.monotonic()
        config = TrainConfig(max_minutes=options.minutes, steps=options.steps, steps_per_epoch=STEPS_PER_EPOCH)
        train(run, fold="all", use_scan=options.use_scan, config=config, restart=True, on_step=on_step)
        seconds["train"] = time.monotonic() - started

        started = time.monotonic()
        cases = [case.images[0] for case in read_dataset(dataset).test][: options.test_cases]
        predict(run, cases, masks, PredictOptions(), on_item=on_item)
        seconds["predict"] = time.monotonic() - started

        started = time.monotonic()
        truths = [dataset / "labelsTs" / path.name for path in cases]
        evaluation = run_evaluation(masks, truths, output=output).evaluation
        overview = output / "overview.png"
        save_overview(overview, evaluation, cases, truths, masks)
        seconds["evaluate"] = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return DemoResult(evaluation, masks, overview, seconds, peak)
