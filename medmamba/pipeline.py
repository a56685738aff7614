"""The verbs of medmamba: plan, train, predict, evaluate. The commands and the Python API both come through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmamba.planning.run import OnItem
from medmamba.planning.run import plan as plan
from medmamba.training.run import train as train

if TYPE_CHECKING:
    from medmamba.evaluation.options import EvaluateOptions
    from medmamba.evaluation.report import Evaluation
    from medmamba.inference.folder.run import PredictionReport
    from medmamba.inference.options import PredictOptions
    from medmamba.inference.predictor import Predictor


def predict(
    model: str | Path | Predictor,
    images: str | Path | Sequence[Path],
    output: str | Path,
    options: PredictOptions | None = None,
    *,
    on_item: OnItem = lambda stage, done, total: None,
    on_message: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> PredictionReport:
    """Predict a file, a zip or every case of a folder; masks and ``report.json`` land in ``output``.

    ``changes`` are single fields of the options by name; see :class:`~medmamba.inference.options.PredictOptions`.
    """
    from contextlib import ExitStack

    from medmamba.dicom.codes import check_codes
    from medmamba.dicom.study import opened
    from medmamba.images.cases import find_cases
    from medmamba.inference.folder.run import predict_folder
    from medmamba.inference.folder.workers import Workers
    from medmamba.inference.options import PredictOptions
    from medmamba.inference.predictor import Predictor

    options = PredictOptions.of(options, **changes)
    with ExitStack() as stack:
        if isinstance(images, str | Path):
            images = stack.enter_context(opened(images, options.series))
        find_cases(images)  # a wrong path is reported before a model is loaded
        if options.dicom_kinds:
            check_codes(options.codes)
        if isinstance(model, Predictor):
            engine: Predictor | Workers = model
        elif options.workers:
            engine = stack.enter_context(Workers(model, options, options.workers))
        else:
            engine = Predictor(model, options)
        return predict_folder(engine, images, output, options, on_item=on_item, on_message=on_message)


def evaluate(
    predictions: str | Path,
    truths: str | Path | Sequence[Path],
    options: EvaluateOptions | None = None,
    *,
    output: str | Path | None = None,
    **changes: Any,
) -> Evaluation:
    """Compare masks with truths; ``changes`` are fields of :class:`~medmamba.evaluation.options.EvaluateOptions`."""
    from medmamba.evaluation.run import run_evaluation

    if "tolerance" in changes:  # its name in version 0.1
        changes["tolerance_mm"] = changes.pop("tolerance")
    return run_evaluation(predictions, truths, options, output=output, **changes).evaluation
