"""A folder of results as nnU-Net writes it, made of a network of ours; changed in the tests to what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from medmamba.models.network import network_arguments
from medmamba.networks.build import build_network
from medmamba.nnunet.weights import their_state
from medmamba.plans.nnunet_trained import trained_plan

CONFIGURATION: dict[str, Any] = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [8, 16, 16],
    "median_image_size_in_voxels": [10, 20, 20],
    "spacing": [2.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 2,
    "n_conv_per_stage_encoder": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "num_pool_per_axis": [1, 2, 2],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "unet_max_num_features": 4,
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    "batch_dice": False,
}
"""As nnU-Net 2.1 wrote it, without the entry "architecture"."""


def plans(*more: str) -> dict[str, Any]:
    """plans.json; ``more`` are names of further configurations, all alike but for their spacing."""
    facts = {"mean": 1.0, "std": 2.0, "percentile_00_5": 0.0, "percentile_99_5": 9.0}
    return {
        "dataset_name": "Dataset004_Test",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {"0": facts},
        "configurations": {
            "3d_fullres": dict(CONFIGURATION),
            **{name: {**CONFIGURATION, "spacing": [2.0, 2.0, 2.0]} for name in more},
        },
    }


def description() -> dict[str, Any]:
    """dataset.json; the labels are not in the order of their values."""
    labels = {"background": 0, "second": 2, "first": 1}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}


def checkpoint(seed: int = 0, *, configuration: str = "3d_fullres", **changes: Any) -> dict[str, Any]:
    """What a trainer saves; ``changes`` replace entries."""
    documents = json.dumps(plans(configuration)).encode(), json.dumps(description()).encode()
    plan = trained_plan(*documents, configuration, (0, 1, 2))
    torch.manual_seed(seed)
    network = build_network(**network_arguments(plan, plan.default))
    return {
        "network_weights": their_state(network),
        "current_epoch": 1000,
        "init_args": {"plans": plans(), "configuration": configuration, "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    } | changes


def write_results(
    folder: Path, folds: tuple[str, ...] = ("fold_0", "fold_1"), configuration: str = "3d_fullres"
) -> Path:
    """Dataset004_Test/nnUNetTrainer__nnUNetPlans__3d_fullres with these folds."""
    home = folder / "Dataset004_Test" / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    for number, fold in enumerate(folds):
        (home / fold).mkdir(parents=True)
        torch.save(checkpoint(number, configuration=configuration), home / fold / "checkpoint_final.pth")
    more = () if configuration == "3d_fullres" else (configuration,)
    (home / "plans.json").write_text(json.dumps(plans(*more)))
    (home / "dataset.json").write_text(json.dumps(description()))
    return home
