"""Several trained models that answer together: each by its own plan and preprocessing, then the mean of probabilities.

What was chosen for one model alone, as find-best does, holds for it alone: its temperature is used, but neither its
thresholds nor its cleaning steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.disk.own_files import real_path
from medmamba.errors import ConfigError, InputError
from medmamba.geometry.trail import SpatialTrail
from medmamba.inference.options import PredictorOptions
from medmamba.inference.restore import labels_of, on_native_grid
from medmamba.inference.trained_model import TrainedModel, load_model
from medmamba.models.output_channels import OutputChannels

Streams = Sequence[tuple[Iterable[torch.Tensor], SpatialTrail]]
Models = str | Path | Sequence[str | Path]
"""One model, or several that answer together."""


def paths_of(models: Models) -> list[Path]:
    """The folders of one or several models; raises InputError for an empty list, or one that is named twice."""
    paths = [Path(models)] if isinstance(models, str | Path) else [Path(path) for path in models]
    if not paths:
        raise InputError("No model is named. Give a run folder, a trained fold, or a bundle.")
    real = [real_path(path) for path in paths]
    if twice := next((path for number, path in enumerate(paths) if real[number] in real[:number]), None):
        raise InputError(f"{twice}: named twice. Name each model once.")
    return paths


def load_models(models: Models, options: PredictorOptions) -> TrainedModel:
    """The model of a folder, or those of several joined."""
    paths = paths_of(models)
    return join([load_model(path, options) for path in paths], list(map(str, paths)))


def join(models: Sequence[TrainedModel], names: Sequence[str]) -> TrainedModel:
    """The first model with the others beside it; ``names`` are for messages.

    Raises ConfigError, with both names, unless all have the same labels or regions and the same channels.
    """
    first, *others = models
    for name, other in zip(names[1:], others, strict=True):
        refuse_differing(_facts(first), _facts(other), names[0], name)
    chosen = [name for name, model in zip(names, models, strict=True) if model.recipe is not None and _chose(model)]
    warnings = first.warnings
    if others and chosen:
        warnings += (f"thresholds and post-processing chosen for {', '.join(chosen)} alone are not used",)
    if not others:
        return first
    lacking = "not learned for several models together"
    return replace(first, others=tuple(others), warnings=warnings, expectations=None, not_learned=lacking)


def _chose(model: TrainedModel) -> bool:
    return model.recipe is not None and bool(model.recipe.thresholds or model.recipe.cleaning)


def refuse_differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], first: str, other: str) -> None:
    """Raises ConfigError for the first fact, such as the labels, in which two that are to be averaged differ."""
    for what, value in ours.items():
        if theirs[what] != value:
            raise ConfigError(
                f"{other}: its {what} are not those of {first}: {_text(theirs[what])}, not {_text(value)}. Average "
                "what was trained with the same dataset."
            )


def structures_of(
    labels: Mapping[str, int], regions: Mapping[str, Sequence[str]] | None, order: Sequence[str] | None
) -> dict[str, Any]:
    """Labels by name, and regions with what they leave in a mask, whatever the order of the outputs."""
    joined = regions or {}
    parts = {name: (sorted(joined[name]), written) for name, written in zip(joined, order or (), strict=True)}
    return {"labels": {**labels, "background": 0}, "regions": parts}


def _facts(model: TrainedModel) -> dict[str, Any]:
    plan = model.ensembles[0].plan
    return {"channels": list(plan.channel_names), **structures_of(plan.labels, plan.regions, plan.region_order)}


def _text(value: object) -> str:
    parts = value.items() if isinstance(value, dict) else ()
    shown = ", ".join(f"{name} = {what}" for name, what in parts) if parts else ", ".join(map(str, value or ("none",)))  # type: ignore[call-overload]
    return f"{shown:.120}"


def mean_on_native_grid(
    members: Sequence[tuple[TrainedModel, Streams]], heads: OutputChannels
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32]]:
    """Label indices (i, j, k) and the mean probabilities (classes, i, j, k), outputs in the order of ``heads``."""
    mean: NDArray[np.float32] | None = None
    for model, streams in members:
        own = model.ensembles[0].heads
        temperature = 1.0 if model.recipe is None else model.recipe.temperature
        _, found = on_native_grid(streams, own, None, temperature, probabilities=True)
        assert found is not None
        if own.names != heads.names:
            found = found[[own.names.index(name) for name in heads.names]]
        mean = found if mean is None else np.add(mean, found, out=mean)
    assert mean is not None
    mean /= len(members)
    return labels_of(mean, heads), mean
