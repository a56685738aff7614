"""Shipped in bundles: MONAI transforms that bring a case onto the plan's grid and its mask back.

They are used between LoadImaged and SaveImaged; the inverse geometry is text in the image's metadata (``TRAIL``).
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import is_no_channel
from monai.transforms import MapTransform
from monai.utils.enums import MetaKeys
from numpy.typing import NDArray

from medmamba.bundle.runtime.expected import EXPECTED, MEASURED, ExpectedMasks
from medmamba.bundle.runtime.inferer import Stage
from medmamba.bundle.runtime.plan import read_numbers
from medmamba.geometry import Grid
from medmamba.geometry.trail import SpatialTrail
from medmamba.inference.cascade import prepare_stage
from medmamba.inference.restore import on_native_grid
from medmamba.models.cleaning import CleaningStep, clean
from medmamba.models.output_channels import OutputChannels
from medmamba.preprocessing.case import PreprocessedCase
from medmamba.preprocessing.labels import decode, label_names

TRAIL = "medmamba_trail"


class ToPlanGridd(MapTransform):
    """An image with its RAS+ affine to (C, I, J, K) float32 on the plan's grid.

    The image is (C, i, j, k) or (C, i, j), or has its channels where its metadata says, or none: a client may load it
    in another way than ``LoadImaged``.
    The labels of ``previous``, first stage of a cascade, become further channels. On the grids of ``others``,
    configurations averaged with the main one, the image is ``KEY_1``, ...
    """

    def __init__(
        self, keys: Any, plan: Mapping[str, Any], previous: Stage | None = None, others: Sequence[Stage] = ()
    ) -> None:
        super().__init__(keys)
        self.plan = read_numbers(plan)
        self.previous, self.others = previous, list(others)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            image = channel_first(done[key])
            array, grid = self._checked(image)
            done[key] = _with_trail(prepare_stage("image", array, grid, self.plan, self.plan, self.previous), image)
            for number, stage in enumerate(self.others, start=1):
                done[f"{key}_{number}"] = _with_trail(stage.prepare("image", array, grid), image)
        return done

    def _checked(self, image: MetaTensor) -> tuple[NDArray[Any], Grid]:
        array = image.as_tensor().cpu().numpy()
        if array.ndim == 3:
            array = array[..., None]
        channels, name = self.plan.channel_names, image.meta.get("filename_or_obj", "image")
        if array.shape[0] != len(channels):
            raise ValueError(
                f"{name}: has {array.shape[0]} channel(s), the model was trained "
                f"with {len(channels)} ({', '.join(channels)}). Give all channels in this order."
            )
        if self.plan.nonfinite == "zero":
            array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
        elif not np.isfinite(array).all():
            raise ValueError(f"{name}: holds values that are not finite numbers. Clean the image first.")
        affine = None if self.plan.spacing_mm is None else np.asarray(image.affine, dtype=np.float64)
        return array, Grid(array.shape[1:], affine)


class ToNatived(MapTransform):
    """Logits (classes, I, J, K) on the plan's grid to a label map (1, i, j, k) on the image's own grid.

    ``orig_keys`` is the image that :class:`ToPlanGridd` made. Probabilities, of logits divided by the temperature, are
    averaged with those of ``others``; ``thresholds`` are those of regions. What is ``expected`` of the mask goes into
    its metadata.
    """

    def __init__(
        self,
        keys: Any,
        plan: Mapping[str, Any],
        orig_keys: str = "image",
        cleaning: Sequence[Mapping[str, Any]] = (),
        others: Sequence[Stage] = (),
        temperature: float = 1.0,
        thresholds: Sequence[float] | None = None,
        expected: ExpectedMasks | None = None,
    ) -> None:
        super().__init__(keys)
        self.expected = expected
        self.plan = read_numbers(plan)
        self.heads = OutputChannels.of_plan(self.plan)
        self.orig_keys = orig_keys
        self.cleaning = [CleaningStep(**step) for step in cleaning]
        self.others, self.temperature, self.thresholds = list(others), temperature, thresholds

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            others = [done[f"{self.orig_keys}_{n}"] for n in range(1, 1 + len(self.others))]
            done[key] = self._restore(done[key], done[self.orig_keys], others)
        return done

    def _restore(self, logits: torch.Tensor, image: MetaTensor, others: Sequence[MetaTensor]) -> MetaTensor:
        trail = trail_of(image)
        planes = [
            _plain(logits).float().cpu().unbind(1),
            *(stage.planes(_plain(other)) for stage, other in zip(self.others, others, strict=True)),
        ]
        streams = list(zip(planes, [trail, *map(trail_of, others)], strict=True))
        indices, _ = on_native_grid(streams, self.heads, self.thresholds, self.temperature)
        indices = clean(indices, self.cleaning, label_names(self.plan), trail.native.voxel_volume_mm3)
        labels = decode(indices, self.plan)[None].astype(np.int32)
        if json.loads(image.meta[TRAIL])["flat"]:
            labels = labels[..., 0]
        meta = {name: value for name, value in image.meta.items() if name != TRAIL}
        if self.expected is not None:
            measured = logits.meta.get(MEASURED) if isinstance(logits, MetaTensor) else None
            mm = trail.native.spacing_mm
            meta[EXPECTED] = self.expected.of_mask(measured, indices, mm, _plain(image), trail.grid)
        affine = meta.get("original_affine", np.eye(4))
        return MetaTensor(torch.from_numpy(np.ascontiguousarray(labels)), affine=affine, meta=meta)


def channel_first(image: MetaTensor) -> MetaTensor:
    """The image with its channels as first axis, from where the metadata of its loader says they are."""
    axis = image.meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM, 0)
    if tuple(image.shape[1:]) == tuple(np.asarray(image.meta.get(MetaKeys.SPATIAL_SHAPE, ())).tolist()):
        axis = 0  # moved there already, which the metadata does not tell
    voxels = image.as_tensor()
    moved = voxels[None] if is_no_channel(axis) else voxels.movedim(int(axis), 0)
    meta = {**image.meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
    return MetaTensor(moved, affine=image.affine, meta=meta)


def trail_of(image: MetaTensor) -> SpatialTrail:
    """The way that :class:`ToPlanGridd` took with this image."""
    return SpatialTrail.from_dict(json.loads(image.meta[TRAIL])["trail"])


def _with_trail(case: PreprocessedCase, image: MetaTensor) -> MetaTensor:
    meta = {**image.meta, TRAIL: json.dumps({"flat": image.ndim == 3, "trail": case.trail.as_dict()})}
    after = np.eye(4) if case.trail.grid.affine is None else case.trail.grid.affine
    return MetaTensor(torch.from_numpy(np.require(case.image, requirements="W")), affine=torch.tensor(after), meta=meta)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
