"""One prediction as a page that needs nothing else: status, volumes, a picture, and what made the mask."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from medmamba.evaluation.overlay import data_uri, overlay_png
from medmamba.evaluation.page import STYLE

if TYPE_CHECKING:
    from medmamba.inference.prediction import Prediction

NOT_A_DEVICE = "For research. Not a medical device: whoever uses this mask for a patient must check it."


def prediction_page(prediction: Prediction) -> str:
    """The page. It names neither case nor patient."""
    model = prediction.provenance
    names = {} if model is None else {name: value for name, value in model.labels.items() if value}
    image = None if prediction.like is None else prediction.like.array[0]
    png = overlay_png(np.zeros_like(prediction.labels), prediction.labels, prediction.grid, list(names.values()), image)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_volume(prediction.volumes_ml[name])}</td><td>{count}</td></tr>"
        for name, count in prediction.voxels.items()
    )
    findings = "".join(f"<li>{escape(found.level)}: {escape(found.text)}</li>" for found in prediction.findings)
    made = escape(json.dumps(None if model is None else model.as_dict(), indent=1))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Prediction</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>Prediction: {escape(prediction.status)}</h1>"
        f"<p><b>{NOT_A_DEVICE}</b></p>"
        f'<div class="case"><img alt="the slice with most of the mask" src="{data_uri(png)}">'
        f"<table><thead><tr><th>label</th><th>ml</th><th>voxels</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"<h2>Findings</h2><ul>{findings or '<li>none</li>'}</ul>"
        f"<h2>Made by</h2><pre>{made}</pre></body></html>\n"
    )


def _volume(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
