"""nnU-Net in its own environment, trained for given seconds; budget_runs.py runs it with nnU-Net's Python.

Its own trainer (network, loss, augmentation, optimiser, data loaders) does the steps; nothing else is changed. Its
polynomial decay is fitted to the budget, which is one of two:

- ``cpu``: seconds of one thread's processor time, augmentation in process; the number of steps follows from the
  processor time of a step, measured as ours is (cpu_clock.py);
- ``wall``: seconds on the wall, with every core and its own workers for augmentation, as ``nnUNetv2_train`` runs it.

    python nnunet_timed.py prepare DATASET_ID
    python nnunet_timed.py train   DATASET_ID CONFIGURATION CLOCK SECONDS SEED [BATCH_SIZE]
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
DECAY = 0.9


def prepare(dataset: int) -> None:
    """Fingerprint, plan and preprocess."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([dataset], num_processes=2, check_dataset_integrity=True)
    plan_experiments([dataset])
    configurations = json.loads((_preprocessed(dataset) / "nnUNetPlans.json").read_text())["configurations"]
    wanted = [name for name in ("2d", "3d_fullres") if name in configurations]
    preprocess([dataset], configurations=wanted, num_processes=[2] * len(wanted))


def train(dataset: int, configuration: str, clock: str, seconds: float, seed: int, batch_size: int | None) -> None:
    """Train on all cases for ``seconds`` by the clock; prints a JSON line with what was done."""
    import numpy as np
    import torch
    from cpu_clock import quiet_step_seconds
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1 if clock == "cpu" else os.cpu_count() or 1)
    folder = _preprocessed(dataset)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    if batch_size is not None:
        plans["configurations"][configuration]["batch_size"] = batch_size

    def make_trainer() -> nnUNetTrainer:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        facts = json.loads((folder / "dataset.json").read_text())
        own = {**plans, "continue_training": False}  # it takes the entry out again
        trainer = nnUNetTrainer(own, configuration, "all", facts, device=torch.device("cpu"))
        trainer.initialize()
        trainer.on_train_start()
        trainer.network.train()
        return trainer

    steps = None
    if clock == "cpu":
        tried = make_trainer()  # only its steps are timed
        step_seconds = quiet_step_seconds(lambda index: tried.train_step(next(tried.dataloader_train)))
        steps = max(1, round(seconds / step_seconds))
    trainer, loss, done = make_trainer(), float("nan"), 0
    started, cpu = time.monotonic(), time.process_time()
    while (share := done / steps if steps else (time.monotonic() - started) / seconds) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** DECAY
        loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
        done += 1
    trainer.save_checkpoint(str(Path(trainer.output_folder) / CHECKPOINT))
    facts = {
        "steps": done,
        "final_loss": loss,
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.monotonic() - started,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "batch_size": trainer.batch_size,
        "patch_size": list(trainer.configuration_manager.patch_size),
    }
    print(json.dumps(facts), flush=True)
    if clock == "wall":
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            loader._finish()  # its workers would outlive us
    os._exit(0)  # its threads do not always end


def predict(dataset: int, configuration: str, images: str, masks: str) -> None:
    """Predict a folder with mirroring, as nnU-Net does by default."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    torch.set_num_threads(os.cpu_count() or 1)  # no budget counts this
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
        train(int(number), rest[0], rest[1], float(rest[2]), int(rest[3]), int(rest[4]) if len(rest) > 4 else None)
    else:
        predict(int(number), *rest)
