"""Bundles of other kinds of images: anisotropic with two channels in several files and oblique axes, and 2D."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from medmamba import pipeline
from medmamba.bundle.card import BundleCard
from medmamba.training.config import TrainConfig

pytest.importorskip("ignite", reason="MONAI's bundle commands need the extra 'bundle'")


def _two_channel_dataset(folder):
    """nnU-Net v2 layout: four oblique volumes of 1 x 1 x 5 mm, a bright ball in each."""
    rng = np.random.default_rng(0)
    turn = np.array([[0, -1, 0], [np.cos(0.2), 0, -np.sin(0.2)], [np.sin(0.2), 0, np.cos(0.2)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.0, 1.0, 5.0]
    for n in range(4):
        shape = (40 + n, 44, 10)
        middle = np.array(shape)[:, None, None, None] / 2
        millimetres = (np.indices(shape) - middle) * np.array([1, 1, 5])[:, None, None, None]
        distance = np.sqrt((millimetres**2).sum(0))
        mask = (distance < 10).astype(np.uint8)
        for channel in range(2):
            noise = rng.normal(100, 20, shape) + 80 * mask * (channel + 1)
            path = folder / "imagesTr" / f"case_{n}_{channel:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(noise.astype(np.float32), affine), path)
        (folder / "labelsTr").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, affine), folder / "labelsTr" / f"case_{n}.nii.gz")
    facts = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "ball": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_an_oblique_anisotropic_two_channel_model_gives_the_same_voxels(configuration, tmp_path):
    from medmamba.bundle.write import export_bundle

    data = _two_channel_dataset(tmp_path / "data")
    run = tmp_path / "run"
    made = pipeline.plan(data, run)
    if made.default_configuration != configuration:
        pytest.skip(f"the plan's default is {made.default_configuration}; only that one is preprocessed")
    pipeline.train(run, fold="all", config=TrainConfig(steps=1, steps_per_epoch=1, workers=0, warmup_steps=0))
    images = tmp_path / "images"
    images.mkdir()
    for channel in range(2):
        name = f"case_0_{channel:04d}.nii.gz"
        (images / name).write_bytes((data / "imagesTr" / name).read_bytes())
    report = export_bundle(run, tmp_path / "bundle", BundleCard("MIT", "test"), images, mirror=False)
    assert report.cases[0].case_id == "case_0"
