"""A model that predicts in milliseconds: a plan and a tiny U-Net with random weights."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from medmamba.disk.atomic import write_json, write_text
from medmamba.models.checkpoint import save_checkpoint
from medmamba.models.network import previous_labels
from medmamba.networks.build import build_network
from medmamba.plans.schema import Plan

TINY = {
    "name": "plain_unet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "features_per_stage": [4, 8, 8],
    "blocks_per_stage": [1, 1, 1],
    "decoder_convs": 1,
    "kernels": [[3, 3, 3]] * 3,
    "stem": "conv",
    "deep_supervision": False,
}


def make_fold(folder: Path, plan: Plan, seed: int, configuration: str = "3d_fullres") -> Path:
    """A trained fold: plan, facts and one checkpoint of random weights."""
    torch.manual_seed(seed)
    extra = previous_labels(plan, plan.configurations[configuration])
    numbers = TINY | {"in_channels": 1 + extra, "out_channels": plan.out_channels}
    network = build_network(**numbers)
    write_text(folder / "plan.json", plan.to_json())
    write_json(
        folder / "model.json",
        {"plan_sha256": plan.hash(), "configuration": configuration, "fold": str(seed), "network": numbers},
    )
    save_checkpoint(folder / "checkpoints", network, None, {"progress": {}})
    return folder


def write_noise(folder: Path, count: int, shape: tuple[int, int, int]) -> Path:
    """A new folder of images patient_0, patient_1, ... of noise that looks like MR intensities."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).normal(200, 60, shape).astype(np.float32)
        nib.save(nib.Nifti1Image(pixels, np.eye(4)), folder / f"patient_{number}.nii.gz")
    return folder
