"""Small datasets of the kinds that the examples are about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image


def decathlon(folder: Path, names: list[str], modality: list[str], label: str, ending: str) -> Path:
    """dataset.json for files that lie in imagesTr and labelsTr."""
    entries = [{"image": f"./imagesTr/{n}{ending}", "label": f"./labelsTr/{n}{ending}"} for n in names]
    facts = {
        "name": "Small",
        "modality": {str(n): text for n, text in enumerate(modality)},
        "labels": {"0": "background", "1": label},
        "numTraining": len(names),
        "training": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def pictures(folder: Path) -> Path:
    """Six RGB pictures of discs."""
    rng = np.random.default_rng(0)
    for n in range(6):
        rows, columns = np.indices((64, 72))
        mask = ((rows - 30) ** 2 + (columns - 25 - 4 * n) ** 2 < 150).astype(np.uint8)
        colours = (rng.integers(0, 120, (*mask.shape, 3)) + 100 * mask[..., None]).astype(np.uint8)
        for part, array in (("imagesTr", colours), ("labelsTr", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / part / f"p{n}.png")
    return decathlon(folder, [f"p{n}" for n in range(6)], ["R", "G", "B"], "nucleus", ".png")


def volumes(folder: Path, names: list[str], shape, spacing, modality: list[str], label: str) -> Path:
    """Volumes with a ball each, one channel per modality."""
    rng = np.random.default_rng(0)
    affine = np.diag([*spacing, 1.0])
    for name in names:
        distance = (np.indices(shape) - np.array(shape)[:, None, None, None] / 2) * np.array(spacing)[
            :, None, None, None
        ]
        mask = (np.sqrt((distance**2).sum(0)) < 9).astype(np.uint8)
        image = rng.normal(100, 15, (*shape, len(modality))).astype(np.float32) + 60 * mask[..., None]
        for part, array in (("imagesTr", image if len(modality) > 1 else image[..., 0]), ("labelsTr", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), folder / part / f"{name}.nii.gz")
    return decathlon(folder, names, modality, label, ".nii.gz")


def small_copy(source: Path, folder: Path, *, training: int, test: int) -> Path:
    """The first cases of a Decathlon folder as a dataset of its own."""
    facts = json.loads((source / "dataset.json").read_text())
    facts["training"], facts["test"] = facts["training"][:training], facts["test"][:test]
    facts["numTraining"], facts["numTest"] = training, test
    names = [name for entry in facts["training"] for name in entry.values()] + facts["test"]
    for name in [*names, *(name.replace("imagesTs", "labelsTs") for name in facts["test"])]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder
