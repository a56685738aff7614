"""The verbs of medmamba: plan, train, predict, evaluate. The commands and the Python API both come through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmamba.planning.run import OnItem
from medmamba.planning.run import plan as plan
from medmamba.training.run import train as train

if TYPE_CHECKING:
    from medmamba.evaluation.report import Evaluation
    from medmamba.inference.folder.run import PredictionReport
    from medmamba.inference.predictor import Predictor


def predict(
    model: str | Path | Predictor,
    images: str | Path | Sequence[Path],
    output: str | Path,
    *,
    part: tuple[int, int] | None = None,
    resume: bool = False,
    probabilities: bool = False,
    pseudonymise: bool = False,
    workers: int = 0,
    series: str | None = None,
    dicom_seg: bool = False,
    dicom_rtstruct: bool = False,
    codes: str | Path | None = None,
    on_item: OnItem = lambda stage, done, total: None,
    on_message: Callable[[str], None] = lambda line: None,
    **choices: Any,
) -> PredictionReport:
    """Predict a file, a zip or every case of a folder; masks and ``report.json`` land in ``output``.

    Args:
        workers: processes that share the cases; 0: this process does them.
        dicom_seg, dicom_rtstruct: also write each mask as DICOM SEG, as contours.
        series: number or UID of the DICOM series to take, where a study holds several.
        choices: as of :class:`medmamba.Predictor`; the rest as of :func:`medmamba.inference.folder.run.predict_folder`.
    """
    from contextlib import ExitStack

    from medmamba.dicom.codes import check_codes
    from medmamba.dicom.study import opened
    from medmamba.images.cases import find_cases
    from medmamba.inference.folder.run import predict_folder
    from medmamba.inference.folder.workers import Workers
    from medmamba.inference.predictor import Predictor

    with ExitStack() as stack:
        if isinstance(images, str | Path):
            images = stack.enter_context(opened(images, series))
        find_cases(images)  # a wrong path is told before a model is loaded
        dicom = ["seg"] * dicom_seg + ["rtstruct"] * dicom_rtstruct
        if dicom:
            check_codes(codes)
        if isinstance(model, Predictor):
            engine: Predictor | Workers = model
        elif workers:
            engine = stack.enter_context(Workers(model, choices, workers))
        else:
            engine = Predictor(model, **choices)
        return predict_folder(
            engine,
            images,
            output,
            part=part,
            resume=resume,
            probabilities=probabilities,
            pseudonymise=pseudonymise,
            dicom=dicom,
            codes=codes,
            on_item=on_item,
            on_message=on_message,
        )


def evaluate(
    predictions: str | Path, truths: str | Path | Sequence[Path], *, output: str | Path | None = None, **choices: Any
) -> Evaluation:
    """Compare masks with truths; ``choices`` as of :func:`medmamba.evaluation.run.run_evaluation`."""
    from medmamba.evaluation.run import run_evaluation

    return run_evaluation(predictions, truths, output=output, **choices).evaluation
