"""nnU-Net in its own environment, trained for a number of minutes: run by benchmarks/accuracy.py with nnU-Net's Python.

nnU-Net counts epochs, not minutes. Here its own trainer (network, loss, augmentation, optimiser, data loaders) does the
steps, and its polynomial decay follows the share of the minutes that is used, as ours does. Nothing else is changed.

    python nnunet_timed.py prepare DATASET_ID
    python nnunet_timed.py train   DATASET_ID CONFIGURATION MINUTES SEED [BATCH_SIZE]
    python nnunet_timed.py predict DATASET_ID CONFIGURATION IMAGES MASKS
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

CHECKPOINT = "checkpoint_final.pth"


def prepare(dataset: int) -> None:
    """Fingerprint, plan and preprocess."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([dataset], num_processes=2, check_dataset_integrity=True)
    plan_experiments([dataset])
    preprocess([dataset], configurations=["2d", "3d_fullres"], num_processes=[2, 2])


def train(dataset: int, configuration: str, minutes: float, seed: int, batch_size: int | None) -> None:
    """Train on all cases for ``minutes``; prints a JSON line with what was done."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    folder = _preprocessed(dataset)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    if batch_size is not None:
        plans["configurations"][configuration]["batch_size"] = batch_size
    trainer = nnUNetTrainer(
        plans, configuration, "all", json.loads((folder / "dataset.json").read_text()), device=torch.device("cpu")
    )
    trainer.initialize()
    trainer.on_train_start()
    trainer.network.train()
    started, steps, loss = time.monotonic(), 0, float("nan")
    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
        steps += 1
    trainer.save_checkpoint(str(Path(trainer.output_folder) / CHECKPOINT))
    print(json.dumps({"steps": steps, "loss": loss, "seconds": time.monotonic() - started}), flush=True)
    os._exit(0)  # its data workers do not always end


def predict(dataset: int, configuration: str, images: str, masks: str) -> None:
    """Predict a folder with mirroring, as nnU-Net does by default."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        get_output_folder(dataset, "nnUNetTrainer", "nnUNetPlans", configuration), ("all",), CHECKPOINT
    )
    predictor.predict_from_files(images, masks, num_processes_preprocessing=1, num_processes_segmentation_export=1)


def _preprocessed(dataset: int) -> Path:
    root = Path(os.environ["nnUNet_preprocessed"])  # noqa: SIM112, nnU-Net's own spelling
    return next(root.glob(f"Dataset{dataset:03d}_*"))


if __name__ == "__main__":
    verb, number, *rest = sys.argv[1:]
    if verb == "prepare":
        prepare(int(number))
    elif verb == "train":
        train(int(number), rest[0], float(rest[1]), int(rest[2]), int(rest[3]) if len(rest) > 3 else None)
    else:
        predict(int(number), *rest)
