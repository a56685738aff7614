"""The verbs of medmamba: plan, train, predict, evaluate. The commands and the Python API both come through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmamba.planning import OnItem
from medmamba.planning import plan as plan
from medmamba.training.run import train as train

if TYPE_CHECKING:
    from medmamba.evaluation.report import Evaluation
    from medmamba.inference.batch import PredictionReport
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
    on_item: OnItem = lambda stage, done, total: None,
    on_message: Callable[[str], None] = lambda line: None,
    **choices: Any,
) -> PredictionReport:
    """Predict a file or every case of a folder; masks and ``report.json`` land in ``output``.

    ``choices`` as of :class:`medmamba.Predictor`, the rest as of :func:`medmamba.inference.batch.predict_folder`.
    """
    from medmamba.inference.batch import predict_folder
    from medmamba.inference.cases import find_cases
    from medmamba.inference.predictor import Predictor
    from medmamba.inference.pseudonyms import Pseudonyms

    find_cases(images)  # a wrong path is told before a model is loaded
    return predict_folder(
        model if isinstance(model, Predictor) else Predictor(model, **choices),
        images,
        output,
        part=part,
        resume=resume,
        probabilities=probabilities,
        pseudonyms=Pseudonyms.of_folder(Path(output)) if pseudonymise else None,
        on_item=on_item,
        on_message=on_message,
    )


def evaluate(
    predictions: str | Path, truths: str | Path | Sequence[Path], *, output: str | Path | None = None, **choices: Any
) -> Evaluation:
    """Compare masks with truths; ``choices`` as of :func:`medmamba.evaluation.run.run_evaluation`."""
    from medmamba.evaluation.run import run_evaluation

    return run_evaluation(predictions, truths, output=output, **choices).evaluation
