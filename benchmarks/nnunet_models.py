"""nnU-Net's half of the comparison of masks: trains small models with it and predicts test cases, in its environment.

Data, trainer, network, loss, augmentation and predictor are nnU-Net's own; changed are the widths (a quarter), the
batch, the length and the optimiser (AdamW, which marks structures after some hundred steps where nnU-Net's own takes
thousands), so that each model takes minutes on one thread. nnunet_sameness.py predicts the same cases.

    python benchmarks/nnunet_models.py DATA FOLDER [NAME ...]

DATA holds the folders hippocampus, cardiac_lv and nuclei2018 in the layout of the Medical Segmentation Decathlon.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
WIDTH_SHARE = 4
TEST_CASES = 4
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Model:
    """A model: its dataset, nnU-Net's planner and configuration, and the length of its training.

    ``memory_gb`` is the planner's target; ``folds`` have a model each.
    """

    dataset: str
    configuration: str
    steps: int
    planner: str = "ExperimentPlanner"
    memory_gb: float | None = None
    batch: int | None = None
    trainer: str = "nnUNetTrainer"
    folds: Sequence[int | str] = ("all",)


MODELS = {
    "hippocampus_3d": Model("hippocampus", "3d_fullres", 250, batch=2),
    "hippocampus_resenc_m": Model("hippocampus", "3d_fullres", 80, planner="nnUNetPlannerResEncM", batch=2),
    "hippocampus_2d": Model("hippocampus", "2d", 100, batch=16, folds=(0, 1)),
    "cardiac_2d": Model("cardiac_lv", "2d", 60, batch=4),
    "cardiac_3d": Model("cardiac_lv", "3d_fullres", 30, batch=2, trainer="nnUNetTrainerNoMirroring"),
    "nuclei_2d": Model("nuclei2018", "2d", 60, batch=4),
    "regions": Model("regions", "3d_fullres", 150, batch=2),
    "ignore": Model("ignore", "3d_fullres", 100, batch=2),
    "two_channels": Model("two_channels", "3d_fullres", 100, batch=2, trainer="nnUNetTrainer_onlyMirror01"),
    "lowres": Model("large", "3d_lowres", 50, memory_gb=1.0),
    "cascade": Model("large", "3d_cascade_fullres", 50, memory_gb=1.0),
}
NUMBERS = {"hippocampus": 501, "cardiac_lv": 502, "nuclei2018": 503, "regions": 504, "ignore": 505}
NUMBERS |= {"two_channels": 506, "large": 507}


def make_raw(name: str, data: Path, raw: Path) -> None:
    """A dataset in nnU-Net's raw layout; the last cases are test cases."""
    folder = raw / f"Dataset{NUMBERS[name]}_{name}"
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for sub in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (part / sub).mkdir(parents=True)
    facts: dict[str, Any] = {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    if name == "large":
        facts["labels"] = {"background": 0, "ball": 1, "rod": 2}
        count = synthetic(part)
    elif name == "nuclei2018":
        facts |= {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "nucleus": 1}}
        facts["file_ending"] = ".png"
        count = copied(data / name, part, 40, ".png")
    elif name == "cardiac_lv":
        facts["labels"] = {"background": 0, "lv": 1}
        count = copied(data / name, part, 24, ".nii.gz")
    else:
        facts["labels"] = {"background": 0, "anterior": 1, "posterior": 2}
        count = copied(data / "hippocampus", part, 40, ".nii.gz")
        changed(name, part, facts)
    (part / "dataset.json").write_text(json.dumps({**facts, "numTraining": count}))
    part.rename(folder)


def copied(source: Path, folder: Path, cases: int, ending: str) -> int:
    """The first cases of a dataset, its last of those as test cases; returns the number of training cases."""
    names = sorted(path.name for path in (source / "labelsTr").iterdir() if path.name.endswith(ending))[:cases]
    for number, name in enumerate(names):
        split = "Tr" if number < len(names) - TEST_CASES else "Ts"
        case = name.removesuffix(ending)
        shutil.copy(source / "imagesTr" / name, folder / f"images{split}" / f"{case}_0000{ending}")
        if ending == ".png":
            labels_of_zeros_and_ones(source / "labelsTr" / name, folder / f"labels{split}" / name)
        else:
            shutil.copy(source / "labelsTr" / name, folder / f"labels{split}" / name)
    return len(names) - TEST_CASES


def labels_of_zeros_and_ones(source: Path, target: Path) -> None:
    from skimage import io

    io.imsave(target, (io.imread(source) > 0).astype("uint8"), check_contrast=False)


def changed(name: str, folder: Path, facts: dict[str, Any]) -> None:
    """The hippocampus data with regions, ignored voxels or a second channel."""
    import numpy as np
    import SimpleITK as sitk

    if name == "regions":
        facts["labels"] = {"background": 0, "whole": [1, 2], "posterior": 2}
        facts["regions_class_order"] = [1, 2]
    if name == "ignore":
        facts["labels"]["ignore"] = 3
        for path in (folder / "labelsTr").iterdir():
            image = sitk.ReadImage(str(path))
            array = sitk.GetArrayFromImage(image)
            array[::3] = 3
            made = sitk.GetImageFromArray(array)
            made.CopyInformation(image)
            sitk.WriteImage(made, str(path))
    if name == "two_channels":
        facts["channel_names"] = {"0": "T1", "1": "CT"}
        for path in [*(folder / "imagesTr").iterdir(), *(folder / "imagesTs").iterdir()]:
            image = sitk.ReadImage(str(path))
            array = sitk.GetArrayFromImage(image).astype(np.float32)
            made = sitk.GetImageFromArray(np.abs(np.gradient(array, axis=1)) + 0.25 * array)
            made.CopyInformation(image)
            sitk.WriteImage(made, str(path).replace("_0000", "_0001"))


def synthetic(folder: Path) -> int:
    """Large volumes of noise with a ball and a rod, of several spacings, an edge of zeros around them."""
    import numpy as np
    import SimpleITK as sitk

    rng = np.random.default_rng(7)
    for number in range(10):
        split = "Tr" if number < 8 else "Ts"
        shape = 90 + rng.integers(0, 20), 150 + rng.integers(0, 20), 160 + rng.integers(0, 20)
        axes = np.ogrid[tuple(slice(extent) for extent in shape)]
        centre, rod = [extent * rng.uniform(0.35, 0.65) for extent in shape], [e * rng.uniform(0.3, 0.7) for e in shape]
        ball = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, (14, 26, 26), strict=True)) < 1
        stick = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, rod, (40, 9, 9), strict=True)) < 1
        labels = np.zeros(shape, np.uint8)
        labels[ball], labels[stick] = 1, 2
        image = rng.normal(100, 18, shape) + 30 * ball + 70 * stick
        image[:6], image[:, :9], image[:, :, -11:] = 0, 0, 0
        spacing = (float(rng.choice([0.7, 0.75, 0.8])),) * 2 + (float(rng.choice([1.0, 1.2, 1.5])),)
        for kind, array in (("images", image.astype(np.float32)), ("labels", labels)):
            made = sitk.GetImageFromArray(array)
            made.SetSpacing(spacing)
            ending = "_0000.nii.gz" if kind == "images" else ".nii.gz"
            sitk.WriteImage(made, str(folder / f"{kind}{split}" / f"large_{number:02d}{ending}"))
    return 8


def prepared(name: str, model: Model, root: Path) -> str:
    """Plans and preprocessed cases of a model; returns the name of its plans."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    number = NUMBERS[model.dataset]
    folder = root / "preprocessed" / f"Dataset{number}_{model.dataset}"
    if not (folder / "dataset_fingerprint.json").exists():
        extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
    family = "resenc" if "ResEnc" in model.planner else "plain"
    identifier = f"{family}Plans"
    path = folder / f"{identifier}.json"
    if not path.exists():
        plan_experiments([number], model.planner, model.memory_gb, overwrite_plans_name=identifier)
        plans = json.loads(path.read_text())
        for part in plans["configurations"].values():
            if "architecture" in part:
                numbers = part["architecture"]["arch_kwargs"]
                numbers["features_per_stage"] = [width // WIDTH_SHARE for width in numbers["features_per_stage"]]
        path.write_text(json.dumps(plans, indent=4))
    wanted = [model.configuration.replace("cascade_", "")]
    if wanted == ["3d_lowres"]:
        wanted.append("3d_fullres")  # its validation makes labels on the grid of the stage after it
    for configuration in wanted:
        if not (folder / f"{identifier}_{configuration}").exists():
            preprocess([number], identifier, configurations=[configuration], num_processes=[1])
    return identifier


def train(model: Model, identifier: str, root: Path, fold: int | str) -> None:
    """Train one fold, augmenting in this process, and store what nnU-Net stores."""
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112, nnU-Net's own spelling; its planner cannot do with 0
    import numpy as np
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    folder = root / "preprocessed" / f"Dataset{NUMBERS[model.dataset]}_{model.dataset}"
    plans = json.loads((folder / f"{identifier}.json").read_text())
    if model.batch is not None:
        plans["configurations"][model.configuration]["batch_size"] = model.batch
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    facts = json.loads((folder / "dataset.json").read_text())
    own = {**plans, "continue_training": False}
    trainer = recursive_find_trainer_class_by_name(model.trainer)(
        own, model.configuration, fold, facts, device=torch.device("cpu")
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, model.steps, 1
    trainer.initialize()
    trainer.optimizer = torch.optim.AdamW(trainer.network.parameters(), lr=LEARNING_RATE)
    trainer.on_train_start()
    trainer.network.train()
    for step in range(model.steps):
        for group in trainer.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / model.steps) ** 0.9
        loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
        if step % 20 == 0:
            print(model.dataset, model.configuration, fold, step, f"{loss:.3f}", flush=True)
    os.environ["nnUNet_n_proc_DA"] = SETTINGS["nnUNet_n_proc_DA"]  # noqa: SIM112
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    if model.configuration == "3d_lowres":
        trainer.perform_actual_validation(False)  # the labels that the second stage of the cascade is trained with


def results(model: Model, identifier: str, root: Path) -> Path:
    """nnU-Net's folder of a trained model."""
    name = f"{model.trainer}__{identifier}__{model.configuration}"
    return root / "results" / f"Dataset{NUMBERS[model.dataset]}_{model.dataset}" / name


HOW = {"mirrored": True, "plain": False, "float32_mirrored": True, "float32_plain": False}
"""Ways to predict, and whether they mirror."""


def predict(name: str, model: Model, identifier: str, root: Path, ways: Sequence[str] = tuple(HOW)) -> None:
    """Masks and probabilities of the test cases, with and without mirroring; then both again with sums in float32.

    nnU-Net sums patches in half precision, which alone moves probabilities by some thousandths.
    """
    import time

    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(1)
    images = root / "raw" / f"Dataset{NUMBERS[model.dataset]}_{model.dataset}" / "imagesTs"
    for how in ways:
        output, mirror = root / "masks" / name / how, HOW[how]
        if output.exists():
            continue
        if how.startswith("float32"):
            sum_in_float32()
        predictor = nnUNetPredictor(
            use_mirroring=mirror, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(results(model, identifier, root)), tuple(model.folds))
        part = output.with_name(output.name + ".part")
        part.mkdir(parents=True, exist_ok=True)
        before = root / "masks" / "lowres" / how if model.configuration == "3d_cascade_fullres" else None
        started = time.process_time()
        predictor.predict_from_files_sequential(
            str(images), str(part), save_probabilities=True, folder_with_segs_from_prev_stage=before and str(before)
        )
        (part / "seconds.txt").write_text(f"{time.process_time() - started:.1f}\n")
        part.rename(output)


def sum_in_float32() -> None:
    """Let nnU-Net's predictor of this process add up patches in float32."""
    import functools

    import torch
    from nnunetv2.inference import predict_from_raw_data as module

    if isinstance(module.compute_gaussian, functools.partial):
        return

    class Torch:
        half = torch.float32

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    module.torch = Torch()
    module.compute_gaussian = functools.partial(module.compute_gaussian.__wrapped__, dtype=torch.float32)
    module.compute_gaussian.cache_clear = lambda: None


def main() -> None:
    data, root, *names = sys.argv[1:]
    os.environ.update(SETTINGS)
    for kind in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{kind}"] = str(Path(root).absolute() / kind)
    here = Path(root).absolute()
    for name in names or MODELS:
        model = MODELS[name]
        make_raw(model.dataset, Path(data), here / "raw")
        identifier = prepared(name, model, here)
        for fold in model.folds:
            if not (results(model, identifier, here) / f"fold_{fold}" / "checkpoint_final.pth").exists():
                train(model, identifier, here, fold)
        predict(name, model, identifier, here)
        print("done", name, flush=True)


if __name__ == "__main__":
    main()
