"""Seconds and memory of predicting files, beside nnU-Net's predictor with the same network size.

    python benchmarks/prediction_speed.py hippocampus --images DATA/imagesTr --peer NNUNET/bin/python -o WORK
    python benchmarks/prediction_speed.py ct --classes 25 --peer NNUNET/bin/python -o WORK

Both read one nnU-Net plans file (patch, spacing, widths) and predict the same files with random weights, one fold, no
mirroring, from file to file, each in a process of its own. nnU-Net runs its predictor without worker processes, which
costs it least. CPU seconds of the process and its children are compared, because they bear a busy machine; starting
Python and loading the model are left out. Prints one JSON line per system.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CT_SHAPE = (512, 512, 300)
CT_SPACING_MM = (0.8, 0.8, 1.0)


def plans(task: str) -> dict[str, Any]:
    """An nnU-Net plans file for the task."""
    ct = task == "ct"
    widths = [8, 16, 32, 64] if ct else [16, 32, 64, 128]
    kernels: list[Any] = [[3, 3, 3]] * len(widths)
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [96, 96, 96] if ct else [40, 56, 40],
        "median_image_size_in_voxels": [200.0, 273.0, 273.0] if ct else [36.0, 50.0, 35.0],
        "spacing": [1.5, 1.5, 1.5] if ct else [1.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization" if ct else "ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": len(widths),
                "features_per_stage": widths,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": kernels,
                "strides": [[1, 1, 1], *[[2, 2, 2]] * (len(widths) - 1)],
                "n_conv_per_stage": [2] * len(widths),
                "n_conv_per_stage_decoder": [2] * (len(widths) - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(CT_SPACING_MM if ct else (1.0, 1.0, 1.0)),
        "original_median_shape_after_transp": list(CT_SHAPE if ct else (36, 50, 35)),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "max": 3000.0, "mean": 50.0, "median": 50.0, "min": -1000.0,
                "percentile_00_5": -900.0, "percentile_99_5": 300.0, "std": 120.0,
            }
        },
    }  # fmt: skip


def description(task: str, classes: int) -> dict[str, Any]:
    """The dataset.json that goes with the plans; ``classes`` with the background."""
    labels = {"background": 0} | {f"structure_{number}": number for number in range(1, classes)}
    channel = "CT" if task == "ct" else "MRI"
    return {"channel_names": {"0": channel}, "labels": labels, "numTraining": 40, "file_ending": ".nii.gz"}


def synthetic_ct(path: Path, slices: int) -> None:
    """A body of soft tissue with noise in air, int16."""
    import nibabel as nib
    import numpy as np

    rng = np.random.default_rng(0)
    i, j, k = (np.linspace(-1, 1, n, dtype=np.float32) for n in (*CT_SHAPE[:2], slices))
    body = (i[:, None, None] ** 2 / 0.7 + j[None, :, None] ** 2 / 0.45 + 0 * k[None, None]) < 1
    organs = 60 * np.sin(9 * i)[:, None, None] * np.sin(7 * j)[None, :, None] * np.sin(5 * k)[None, None]
    pixels = np.where(body, 40 + organs, -1000).astype(np.int16)
    pixels += rng.integers(-20, 21, pixels.shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(pixels, np.diag([*CT_SPACING_MM, 1.0])), path)


def prepare(work: Path, _: list[Path]) -> None:
    """Write a fold with random weights, in a process of its own: what it needs is no part of a prediction."""
    import torch

    from medmamba.disk.atomic import write_json, write_text
    from medmamba.models.checkpoint import save_checkpoint
    from medmamba.models.network import network_arguments
    from medmamba.networks.build import build_network
    from medmamba.plans.nnunet_files import from_nnunet

    plan = from_nnunet((work / "plans.json").read_text(), (work / "dataset.json").read_text())
    torch.manual_seed(0)
    numbers = network_arguments(plan, plan.default)
    network = build_network(**numbers)
    fold = work / "ours" / "fold_0"
    write_text(fold / "plan.json", plan.to_json())
    facts = {"plan_sha256": plan.hash(), "configuration": plan.default_configuration, "fold": "0", "network": numbers}
    write_json(fold / "model.json", facts)
    save_checkpoint(fold / "checkpoints", network, None, {"progress": {}})


def ours(work: Path, images: list[Path]) -> None:
    """Predict with medmamba in this process."""
    from medmamba import pipeline
    from medmamba.inference.predictor import Predictor

    predictor = Predictor(work / "ours" / "fold_0", mirror=False, device="cpu")
    with measured("medmamba", predictor.model.ensembles[0].runners[0].network, images):
        report = pipeline.predict(predictor, images, work / "ours" / "masks", on_message=print_to_stderr)
    assert len(report.done) == len(images), report.failed


def peer(work: Path, images: list[Path]) -> None:
    """Predict with nnU-Net in this process."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(0)
    found = json.loads((work / "plans.json").read_text())
    dataset = json.loads((work / "dataset.json").read_text())
    manager = PlansManager(found)
    configuration = manager.get_configuration("3d_fullres")
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 1, heads, enable_deep_supervision=False)
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(network, manager, configuration, [network.state_dict()], dataset, "none", None)
    out = work / "nnunet_masks"
    out.mkdir(exist_ok=True)
    with measured("nnU-Net 2.8.1", network, images):
        names = [str(out / path.name.removesuffix(".nii.gz")) for path in images]
        predictor.predict_from_files_sequential([[str(path)] for path in images], names)
    assert len(list(out.glob("*.nii.gz"))) == len(images)


class measured:
    """Prints CPU and wall-clock seconds of a block, with children, and the peak memory of the process."""

    def __init__(self, name: str, network: Any, images: list[Path]) -> None:
        self.record = {"system": name, "cases": len(images), "parameters": sum(p.numel() for p in network.parameters())}

    def __enter__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), sum(os.times()[:4])

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            usage = [
                resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            ]
            self.record |= {
                "cpu_seconds": round(sum(os.times()[:4]) - self.cpu, 1),
                "seconds": round(time.perf_counter() - self.wall, 1),
                "peak_gib": round(max(usage), 3),
            }
            print(json.dumps(self.record), flush=True)


def print_to_stderr(line: str) -> None:
    """What the predictor says, out of the way of the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["hippocampus", "ct"])
    parser.add_argument("--images", type=Path, help="folder of images, for hippocampus")
    parser.add_argument("--classes", type=int, default=3, help="with the background")
    parser.add_argument("--slices", type=int, default=CT_SHAPE[2], help="of the CT")
    parser.add_argument("--peer", help="Python of an environment with nnunetv2; without it only medmamba is measured")
    parser.add_argument("--only-peer", action="store_true")
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--run", choices=["prepare", "ours", "peer"], help=argparse.SUPPRESS)
    choices = parser.parse_args()
    work: Path = choices.work
    images = sorted((choices.images or work / "images").glob("*.nii.gz"))
    if choices.run:
        {"prepare": prepare, "ours": ours, "peer": peer}[choices.run](work, images)
        return
    work.mkdir(parents=True, exist_ok=True)
    (work / "plans.json").write_text(json.dumps(plans(choices.task)))
    (work / "dataset.json").write_text(json.dumps(description(choices.task, choices.classes)))
    if choices.task == "ct" and not images:
        (work / "images").mkdir(exist_ok=True)
        synthetic_ct(work / "images" / "ct.nii.gz", choices.slices)
    arguments = [__file__, choices.task, "-o", str(work)]
    arguments += ["--images", str(choices.images)] if choices.images else []
    if not choices.only_peer:
        for step in ("prepare", "ours"):
            subprocess.run([sys.executable, *arguments, "--run", step], check=True)
    if choices.peer:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {name: str(work) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        subprocess.run([choices.peer, *arguments, "--run", "peer"], check=True, env=environment)


if __name__ == "__main__":
    main()
