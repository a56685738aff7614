"""Shipped in bundles: labels on the plan's grid and the loss of every fold, for configs/train.json."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor, nn

from medmamba.bundle.runtime.plan import read_numbers
from medmamba.bundle.runtime.transforms import trail_of
from medmamba.models.output_channels import OutputChannels
from medmamba.preprocessing.case import resample_label_maps
from medmamba.preprocessing.labels import encode
from medmamba.training.losses import DeepSupervision, SegmentationLoss


class LabelToPlanGridd(MapTransform):
    """A label map (1, i, j[, k]) of the dataset's values to label indices (1, I, J, K) on the grid of ``orig_keys``."""

    def __init__(self, keys: Any, plan: Mapping[str, Any], orig_keys: str = "image") -> None:
        super().__init__(keys)
        self.plan = read_numbers(plan)
        self.orig_keys = orig_keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        image = done[self.orig_keys]
        for key in self.key_iterator(done):
            trail = trail_of(image)
            values = np.asarray(done[key]).reshape(1, *trail.native.shape).astype(np.int64)
            indices = trail.apply(encode(values, self.plan), resample=resample_label_maps)
            done[key] = MetaTensor(torch.from_numpy(np.ascontiguousarray(indices)), affine=image.affine)
        return done


class FoldsLoss(nn.Module):
    """Dice and cross-entropy of every fold's logits, the mean over the folds; ignored voxels do not count."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        super().__init__()
        output_channels = OutputChannels.of_plan(read_numbers(plan))
        self.loss = DeepSupervision(SegmentationLoss(output_channels, batch_dice=True))

    def forward(self, outputs: Sequence[Any], target: Tensor) -> Tensor:
        """``outputs``: one entry a fold, of a network in training; ``target`` (B, 1, ...)."""
        return torch.stack([self.loss(output, target.long()) for output in outputs]).mean()
