"""Makes tests/data/nnunet_models: tiny models that nnU-Net trains, test images, and the masks of its predictor.

    nnU-Net's Python: python tests/nnunet/make_golden.py FOLDER_FOR_WORK [NAME ...]

The images are synthetic. Between them the models have every part of nnU-Net's that decides a mask: transposition,
axes as stored, a coarse axis, crop, normalisation in a mask and of CT, several channels, regions, an ignore label, a
cascade, 2D images, both networks, folds. Of the checkpoints everything is kept but the state of the optimiser, which
would be two thirds of the size.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "benchmarks"))
import nnunet_models  # noqa: E402
from nnunet_models import Model  # noqa: E402

GOLDEN = HERE.parent / "data" / "nnunet_models"
MODELS = {
    "coarse": Model("coarse", "3d_fullres", 600, batch=2, folds=(0, 1)),
    "coarse_2d": Model("coarse", "2d", 400, batch=4, trainer="nnUNetTrainerNoMirroring"),
    "regions": Model("regions", "3d_fullres", 600, planner="nnUNetPlannerResEncM", batch=2),
    "photo": Model("photo", "2d", 250, batch=2),
    "lowres": Model("stages", "3d_lowres", 250, memory_gb=0.02),
    "cascade": Model("stages", "3d_cascade_fullres", 250, memory_gb=0.02),
}
NUMBERS = {"coarse": 601, "regions": 602, "photo": 603, "stages": 604}
SETTINGS = {
    "coarse": {"channel_names": {"0": "T1", "1": "CT"}, "labels": {"background": 0, "rod": 2, "ball": 1}},
    "regions": {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    },
    "photo": {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "cell": 1}},
    "stages": {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1, "rod": 2}},
}


def volume(rng: np.random.Generator, shape: tuple[int, ...], border: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a ball (1) and a rod (2), and their labels."""
    axes = np.ogrid[tuple(slice(extent) for extent in shape)]
    labels = np.zeros(shape, np.uint8)
    for value, radii in ((1, (0.22, 0.2, 0.24)), (2, (0.3, 0.12, 0.14))):
        centre = [extent * rng.uniform(0.38, 0.62) for extent in shape]
        inside = sum(((a - c) / (r * e)) ** 2 for a, c, r, e in zip(axes, centre, radii, shape, strict=False)) < 1
        labels[inside] = value
    image = rng.normal(60, 14, shape) + 60 * (labels == 1) + 110 * (labels == 2)
    if border:
        keep = np.zeros(shape, bool)
        keep[tuple(slice(border, -border) for _ in shape)] = True
        image[~keep], labels[~keep] = 0, 0
    return np.clip(np.rint(image), 0, 400).astype(np.int16), labels


def make_raw(name: str, data: Path, raw: Path) -> None:
    """A small dataset in nnU-Net's raw layout, with one test case."""
    import SimpleITK as sitk
    from skimage import io

    folder = raw / f"Dataset{NUMBERS[name]}_{name}"
    if folder.exists():
        return
    for sub in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / sub).mkdir(parents=True)
    rng, ending = np.random.default_rng(len(name)), ".png" if name == "photo" else ".nii.gz"
    for number in range(7):
        split, case = ("Tr", "Ts")[number == 6], f"{name}_{number}"
        if name == "photo":
            image, labels = volume(rng, (44 + number, 61 - number))
            colours = np.stack([np.clip(image * share, 0, 255) for share in (1.0, 0.7, 0.4)], -1).astype(np.uint8)
            io.imsave(folder / f"images{split}" / f"{case}_0000.png", colours, check_contrast=False)
            io.imsave(folder / f"labels{split}" / f"{case}.png", (labels > 0).astype(np.uint8), check_contrast=False)
            continue
        # in SimpleITK's order (z, y, x); the coarse axis is x, so that nnU-Net transposes
        shape = {"coarse": (34 + number, 30, 11), "regions": (22, 26 - number, 30), "stages": (40, 44 + number, 48)}[
            name
        ]
        image, labels = volume(rng, shape, border=3 if name != "regions" else 0)
        if name == "coarse":
            labels[:, :, 1:2] = 0
        if name == "regions" and split == "Tr":
            labels[::4] = 3
        spacing = {"coarse": (3.9 + 0.1 * number, 0.9, 1.0), "regions": (1.0, 1.1, 1.2)}.get(name, (1.0, 0.8, 0.9))
        arrays = [image, np.roll(image, 2, 0) * 3 - 200] if name == "coarse" else [image]
        for channel, array in enumerate([*arrays, labels]):
            made = sitk.GetImageFromArray(array)
            made.SetSpacing(spacing)
            made.SetOrigin((5.0, -7.0, 11.0))
            made.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0) if name == "coarse" else (1, 0, 0, 0, 1, 0, 0, 0, 1))
            kind, end = ("labels", ending) if channel == len(arrays) else ("images", f"_{channel:04d}{ending}")
            sitk.WriteImage(made, str(folder / f"{kind}{split}" / f"{case}{end}"), True)
    facts = {**SETTINGS[name], "file_ending": ending, "numTraining": 6}
    (folder / "dataset.json").write_text(json.dumps(facts))


def main() -> None:
    root, names = Path(sys.argv[1]).absolute(), sys.argv[2:]
    os.environ.update(nnunet_models.SETTINGS)
    for kind in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{kind}"] = str(root / kind)
    nnunet_models.NUMBERS, nnunet_models.WIDTH_SHARE = NUMBERS, 16
    nnunet_models.LEARNING_RATE = 3e-3  # so narrow networks mark their structures sooner with it
    for name, model in MODELS.items():
        if names and name not in names:
            continue
        make_raw(model.dataset, root, root / "raw")
        identifier = nnunet_models.prepared(name, model, root)
        source = nnunet_models.results(model, identifier, root)
        for fold in model.folds:
            if not (source / f"fold_{fold}" / "checkpoint_final.pth").exists():
                nnunet_models.train(model, identifier, root, fold)
        nnunet_models.predict(name, model, identifier, root, ("mirrored", "plain"))
        keep(name, model, source, root)


def keep(name: str, model: Model, source: Path, root: Path) -> None:
    """Copy what the tests need."""
    import torch

    target = GOLDEN / f"Dataset{NUMBERS[model.dataset]}_{model.dataset}"
    for fold in model.folds:
        (target / source.name / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        for path in ("plans.json", "dataset.json"):
            shutil.copy(source / path, target / source.name / path)
        checkpoint = f"fold_{fold}/checkpoint_final.pth"
        content = torch.load(source / checkpoint, map_location="cpu", weights_only=False)
        torch.save(content | {"optimizer_state": {}}, target / source.name / checkpoint)
    images = root / "raw" / target.name / "imagesTs"
    (target / "images").mkdir(exist_ok=True)
    for path in images.iterdir():
        shutil.copy(path, target / "images" / path.name)
    for how in ("mirrored", "plain"):
        masks = target / "masks" / f"{model.configuration}_{how}"
        masks.mkdir(parents=True, exist_ok=True)
        for path in (root / "masks" / name / how).glob(f"{model.dataset}_6.*"):
            if path.suffix not in (".npz", ".pkl"):
                shutil.copy(path, masks / path.name)
        with np.load(root / "masks" / name / how / f"{model.dataset}_6.npz") as stored:
            every_second = stored["probabilities"][:, ::2, ::2, ::2].astype(np.float16)  # along each axis, for the size
            np.savez_compressed(masks / "probabilities.npz", probabilities=every_second)


if __name__ == "__main__":
    main()
