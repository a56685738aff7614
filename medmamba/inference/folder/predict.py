"""`medmamba predict`: a model, in this process or in several, and the images that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from medmamba.dicom.codes import check_codes
from medmamba.dicom.study import opened
from medmamba.images.cases import find_cases
from medmamba.inference.folder.run import OnItem, PredictionReport, predict_folder
from medmamba.inference.folder.workers import Workers
from medmamba.inference.options import PredictOptions
from medmamba.inference.predictor import Predictor


def predict(
    model: str | Path | Predictor,
    images: str | Path | Sequence[Path],
    output: str | Path,
    options: PredictOptions,
    *,
    on_item: OnItem = lambda stage, done, total: None,
    on_message: Callable[[str], None] = lambda line: None,
) -> PredictionReport:
    """Predict a file, a zip or every case of a folder; as :func:`medmamba.pipeline.predict`."""
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
