"""The predictor: loads a trained model once and turns images into masks on their own grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.errors import ConfigError, InputError
from medmamba.geometry import Grid
from medmamba.images import MedicalImage, read_image
from medmamba.inference.restore import labels_on_native_grid
from medmamba.inference.sliding_window import predict_logits
from medmamba.networks.registry import build_network
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.case import preprocess_case
from medmamba.preprocessing.labels import decode, label_names
from medmamba.run_folder import RunFolder, read_plan
from medmamba.training.checkpoint import load_checkpoint, weights_sha256
from medmamba.training.trainer import choose_device


@dataclass(frozen=True)
class Prediction:
    """A mask on the image's own grid: ``labels`` (i, j, k) holds the dataset's label values."""

    labels: NDArray[np.int64]
    grid: Grid
    volumes_ml: dict[str, float | None]
    voxels: dict[str, int]


class Predictor:
    """A trained model, loaded once.

    ``model`` is a run folder (all trained folds of its default or named configuration are averaged) or the folder of
    one fold. Not thread-safe: use one per thread.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        configuration: str | None = None,
        folds: list[int | str] | None = None,
        device: str = "auto",
        mirror: bool = True,
    ) -> None:
        self.folders, self.configuration_name = _find_folds(Path(model), configuration, folds)
        self.plan: Plan = read_plan(self.folders[0] / "plan.json")
        self.configuration: Configuration = self.plan.configurations[self.configuration_name]
        self.device = choose_device(device)
        self.mirror_axes = tuple(range(len(self.configuration.patch_size))) if mirror else ()
        self.networks = [self._load(folder) for folder in self.folders]

    def predict(
        self,
        image: str | Path | MedicalImage | tuple[NDArray[np.generic], NDArray[np.float64] | None],
        on_tile: Callable[[int, int], None] = lambda done, total: None,
    ) -> Prediction:
        """The mask of an image: a path, a read image, or an array (C, i, j, k) or (i, j, k) with its affine (4, 4).

        Raises InputError when the image is unreadable or has another number of channels than the model.
        """
        name, array, grid = _image_of(image)
        if array.shape[0] != len(self.plan.channel_names):
            raise InputError(
                f"{name}: has {array.shape[0]} channel(s), the model was trained with {len(self.plan.channel_names)} "
                f"({', '.join(self.plan.channel_names)}). Give all channels in this order."
            )
        case = preprocess_case(name, array, grid, self.plan, self.configuration)
        pixels = torch.from_numpy(case.image)
        logits = torch.stack(
            [
                predict_logits(
                    network,
                    pixels,
                    tuple(self.configuration.patch_size),
                    self.device,
                    mirror_axes=self.mirror_axes,
                    on_tile=on_tile,
                )
                for network in self.networks
            ]
        ).mean(0)
        indices = labels_on_native_grid(logits, case.trail)
        return self._prediction(indices, grid)

    def provenance(self) -> dict[str, Any]:
        """What made the masks: plan, weights, configuration, device."""
        from medmamba import __version__

        return {
            "medmamba": __version__,
            "torch": torch.__version__,
            "dataset": self.plan.dataset_name,
            "plan_sha256": self.plan.hash(),
            "configuration": self.configuration_name,
            "folds": [folder.name for folder in self.folders],
            "weights_sha256": [weights_sha256(folder / "checkpoints" / _generation(folder)) for folder in self.folders],
            "device": str(self.device),
            "mirroring": bool(self.mirror_axes),
            "labels": dict(self.plan.labels),
        }

    def _load(self, folder: Path) -> torch.nn.Module:
        facts = read_model_facts(folder)
        network = build_network(**facts["network"]).to(self.device)
        load_checkpoint(folder / "checkpoints", network, generation=_generation(folder))
        if facts["plan_sha256"] != read_plan(folder / "plan.json").hash():
            raise ConfigError(f"{folder}: its plan.json is not the plan it was trained with. Restore the file.")
        return network.eval()

    def _prediction(self, indices: NDArray[np.int16], grid: Grid) -> Prediction:
        counts = np.bincount(indices.ravel(), minlength=len(self.plan.labels) + 1)
        volume = grid.voxel_volume_mm3
        names = label_names(self.plan)
        voxels = {name: int(counts[index]) for index, name in enumerate(names, start=1)}
        volumes = {name: None if volume is None else count * volume / 1000 for name, count in voxels.items()}
        return Prediction(decode(indices, self.plan), grid, volumes, voxels)


def read_model_facts(folder: Path) -> dict[str, Any]:
    """The network arguments and plan hash that a fold was trained with."""
    try:
        return json.loads((folder / "model.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: not a trained fold ({error}). Run `medmamba train` first.") from error


def _generation(folder: Path) -> str:
    return "best" if (folder / "checkpoints" / "best" / "state.json").exists() else "last"


def _find_folds(model: Path, configuration: str | None, folds: list[int | str] | None) -> tuple[list[Path], str]:
    if (model / "model.json").is_file():
        return [model], read_model_facts(model)["configuration"]
    if not model.is_dir():
        raise InputError(f"{model}: not found. Give a run folder or the folder of a trained fold.")
    run = RunFolder(model)
    name = configuration or run.read_plan().default_configuration
    trained = run.trained_folds(name)
    if folds is not None:
        wanted = {f"fold_{fold}" for fold in folds}
        missing = wanted - {path.name for path in trained}
        if missing:
            raise InputError(f"{model}: {', '.join(sorted(missing))} of {name} not trained. Train it, or leave it out.")
        trained = [path for path in trained if path.name in wanted]
    if not trained:
        raise InputError(f"{model}: no trained fold of {name}. Run `medmamba train {model}` first.")
    return trained, name


def _image_of(image: Any) -> tuple[str, NDArray[np.generic], Grid]:
    if isinstance(image, str | Path):
        image = read_image(Path(image))
    if isinstance(image, MedicalImage):
        return str(image.path or "image"), image.array, image.grid
    array, affine = image
    array = np.asarray(array)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise InputError(f"The array has shape {array.shape}; give (i, j, k) or (channels, i, j, k).")
    if not np.isfinite(array).all():
        raise InputError("The array holds values that are not finite numbers (NaN or Inf). Clean the image first.")
    return "array", array, Grid(tuple(array.shape[1:]), None if affine is None else np.asarray(affine))
