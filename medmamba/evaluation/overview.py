"""An overview of predictions and truth as one PNG: a slice per case, both outlined."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmamba.disk.atomic import write_bytes
from medmamba.evaluation.report import Evaluation
from medmamba.geometry.trail import Reorient, SpatialTrail
from medmamba.images import read_image, read_label_map
from medmamba.pages.render import COLOURS

COLUMNS = 5


def save_overview(
    path: Path, evaluation: Evaluation, images: Sequence[Path], truths: Sequence[Path], masks: Path
) -> None:
    """Write a PNG with, for every case, the slice that shows most of the truth.

    The truth is a thin white line, the prediction a coloured one per label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 3.2 * rows + 0.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    means = evaluation.mean_per_case()
    for axis in axes:
        axis.set_axis_off()
    for axis, image_path, truth_path in zip(axes, images, truths, strict=False):
        case_id = truth_path.name.removesuffix(".nii.gz").removesuffix(".nii")
        image, truth = read_image(image_path), read_label_map(truth_path)
        prediction = read_label_map(masks / truth_path.name)
        trail = SpatialTrail(image.grid).then(Reorient.to_canonical(image.grid))
        picture = trail.apply(image.array)[0]
        true, found = (trail.apply(labels.array[None])[0] for labels in (truth, prediction))
        index = int((true > 0).sum(axis=(1, 2)).argmax())
        _draw(axis, picture[index], true[index], found[index], list(evaluation.labels.values()))
        axis.set_title(f"{case_id}   Dice {means[case_id]:.3f}", color="white", fontsize=9)
    names = "   ".join(
        f"{name}: {word}"
        for name, word in zip(evaluation.labels, ("orange", "blue", "magenta", "red", "violet"), strict=False)
    )
    figure.suptitle(f"prediction in colour ({names}), truth in white", color="white", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_bytes(path, buffer.getvalue())


def _draw(axis: object, picture: NDArray, truth: NDArray, prediction: NDArray, values: Sequence[int]) -> None:
    low, high = np.percentile(picture, (1, 99))
    axis.imshow(picture.T, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6))  # type: ignore[attr-defined]
    for value, colour in zip(values, COLOURS, strict=False):
        for labels, shade, width in ((truth, "white", 1.0), (prediction, colour, 1.8)):
            if (labels == value).any():
                axis.contour((labels == value).T, [0.5], colors=[shade], linewidths=[width])  # type: ignore[attr-defined]
