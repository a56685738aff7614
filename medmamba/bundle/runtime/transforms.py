"""The way of a case onto the plan's grid and of its mask back, as MONAI transforms.

Both stand between a plain LoadImaged and a plain SaveImaged, so that a client can replace those two by its own. The
way back travels as text in the image's metadata, under ``TRAIL``.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medmamba.bundle.runtime.plan import read_numbers
from medmamba.geometry import Grid
from medmamba.heads import Heads
from medmamba.inference.cleaning import CleaningStep, clean
from medmamba.inference.restore import labels_on_native_grid
from medmamba.preprocessing.case import preprocess_case
from medmamba.preprocessing.labels import decode, label_names
from medmamba.trail import SpatialTrail

TRAIL = "medmamba_trail"


class ToPlanGridd(MapTransform):
    """Canonical axes, crop, intensity normalisation, the plan's axis order and spacing.

    Takes an image (C, i, j, k) or (C, i, j) with its RAS+ affine and gives (C, I, J, K) float32.
    """

    def __init__(self, keys: Any, plan: Mapping[str, Any]) -> None:
        super().__init__(keys)
        self.plan, self.configuration = read_numbers(plan)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            done[key] = self._carry(done[key])
        return done

    def _carry(self, image: MetaTensor) -> MetaTensor:
        array = image.as_tensor().cpu().numpy()
        flat = array.ndim == 3
        if flat:
            array = array[..., None]
        channels = self.plan.channel_names
        if array.shape[0] != len(channels):
            raise ValueError(
                f"{image.meta.get('filename_or_obj', 'image')}: has {array.shape[0]} channel(s), the model was trained "
                f"with {len(channels)} ({', '.join(channels)}). Give all channels in this order."
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"{image.meta.get('filename_or_obj', 'image')}: holds values that are not finite numbers. "
                "Clean the image first."
            )
        affine = None if self.configuration.spacing_mm is None else np.asarray(image.affine, dtype=np.float64)
        grid = Grid(_three(array.shape[1:]), affine)
        case = preprocess_case("image", array, grid, self.plan, self.configuration)  # type: ignore[arg-type]
        meta = dict(image.meta)
        meta[TRAIL] = json.dumps({"flat": flat, "trail": case.trail.as_dict()})
        after = np.eye(4) if case.trail.grid.affine is None else case.trail.grid.affine
        return MetaTensor(torch.from_numpy(case.image), affine=torch.from_numpy(after), meta=meta)


class ToNatived(MapTransform):
    """Logits (classes, I, J, K) on the plan's grid to a label map (1, i, j, k) on the image's own grid.

    Args:
        keys: the logits.
        plan: the entry ``plan`` of configs/inference.json.
        orig_keys: the image that :class:`ToPlanGridd` made.
        cleaning: steps on the components of one label each, in order.
    """

    def __init__(
        self,
        keys: Any,
        plan: Mapping[str, Any],
        orig_keys: str = "image",
        cleaning: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(keys)
        self.plan, _ = read_numbers(plan)
        self.heads = Heads.of_plan(self.plan)  # type: ignore[arg-type]
        self.orig_keys = orig_keys
        self.cleaning = [CleaningStep(**step) for step in cleaning]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            done[key] = self._restore(done[key], done[self.orig_keys])
        return done

    def _restore(self, logits: torch.Tensor, image: MetaTensor) -> MetaTensor:
        record = json.loads(image.meta[TRAIL])
        values = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        trail = SpatialTrail.from_dict(record["trail"])
        indices = labels_on_native_grid(values.float().cpu(), trail, self.heads)
        number = {name: index for index, name in enumerate(label_names(self.plan), start=1)}  # type: ignore[arg-type]
        indices = clean(indices, self.cleaning, number, trail.native.voxel_volume_mm3)
        labels = decode(indices, self.plan)[None].astype(np.int32)  # type: ignore[arg-type]
        if record["flat"]:
            labels = labels[..., 0]
        meta = {name: value for name, value in image.meta.items() if name != TRAIL}
        affine = meta.get("original_affine", np.eye(4))
        return MetaTensor(torch.from_numpy(np.ascontiguousarray(labels)), affine=affine, meta=meta)


def _three(shape: Any) -> tuple[int, int, int]:
    i, j, k = (int(n) for n in shape)
    return i, j, k
