"""One prediction as a page that needs nothing else: status, volumes, a slice of the mask, and what made it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from medmamba.evaluation.overlay import overlay_png
from medmamba.pages.render import render

if TYPE_CHECKING:
    from medmamba.inference.prediction import Prediction

NOT_A_DEVICE = "For research. Not a medical device: whoever uses this mask for a patient must check it."


def prediction_page(prediction: Prediction) -> str:
    """The page. It names neither case nor patient."""
    model = prediction.provenance
    values = [] if model is None else [value for value in model.labels.values() if value]
    image = None if prediction.like is None else prediction.like.array[0]
    volumes = {name: "–" if ml is None else f"{ml:.3f}" for name, ml in prediction.volumes_ml.items()}
    return render(
        "prediction.html",
        prediction=prediction,
        disclaimer=NOT_A_DEVICE,
        slice=overlay_png(np.zeros_like(prediction.labels), prediction.labels, prediction.grid, values, image),
        rows=[[name, volumes[name], count] for name, count in prediction.voxels.items()],
        made_by="" if model is None else json.dumps(model.as_dict(), indent=1),
    )
