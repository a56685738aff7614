"""The Python API from a dataset to masks: plan, train, predict and evaluate, as functions of the package ``medmamba``.

``options`` is the record of a command, and ``changes`` are single fields of it by name:

    medmamba.predict("RUN", "IMAGES", "MASKS", fast=True)
    medmamba.predict("RUN", "IMAGES", "MASKS", read_recipe("predict.yaml", PredictOptions), fast=True)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmamba.evaluation.options import EvaluateOptions
from medmamba.evaluation.report import Evaluation
from medmamba.evaluation.run import run_evaluation
from medmamba.inference.folder.run import predict as predict
from medmamba.planning.run import plan as plan
from medmamba.training.fold import train as train


def evaluate(
    predictions: str | Path,
    truths: str | Path | Sequence[Path],
    options: EvaluateOptions | None = None,
    *,
    output: str | Path | None = None,
    **changes: Any,
) -> Evaluation:
    """Compare masks with truths; tables and a page land in ``output`` (default: beside the masks)."""
    if "tolerance" in changes:  # its name in version 0.1
        changes["tolerance_mm"] = changes.pop("tolerance")
    return run_evaluation(predictions, truths, options, output=output, **changes).evaluation
