"""Bundles of other kinds of models: channels in several files, regions, sides, pictures, cascades, ensembles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medmamba import pipeline
from medmamba.bundle.options import BundleCard
from medmamba.training.config import TrainConfig

pytest.importorskip("ignite", reason="MONAI's bundle commands need the extra 'bundle'")
pytest.importorskip("fire", reason="MONAI's bundle commands need the extra 'bundle'")

QUICK = TrainConfig(steps=1, steps_per_epoch=1, workers=0, warmup_steps=0)


def _volumes(
    folder: Path, labels: dict[str, Any], channels: int, affine: np.ndarray, edge: int = 40, **facts: Any
) -> Path:
    """nnU-Net v2 layout: four volumes with two balls, left and right, a core in each."""
    rng = np.random.default_rng(0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for n in range(4):
        shape = (edge + n, edge + 4, max(10, round(edge / spacing[2])))
        millimetres = (np.indices(shape) - np.array(shape)[:, None, None, None] / 2) * spacing[:, None, None, None]
        mask = np.zeros(shape, np.uint8)
        for value, middle in ((1, -9.0), (3, 9.0)):
            distance = np.sqrt((millimetres[0] - middle) ** 2 + millimetres[1] ** 2 + millimetres[2] ** 2)
            mask[distance < 8] = value
            mask[distance < 4] = value + 1
        mask[mask > max(value for value in _flat(labels))] = 1
        for channel in range(channels):
            noise = rng.normal(100, 20, shape) + 60 * (mask > 0) * (channel + 1)
            path = folder / "imagesTr" / f"case_{n}_{channel:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(noise.astype(np.float32), affine), path)
        (folder / "labelsTr").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, affine), folder / "labelsTr" / f"case_{n}.nii.gz")
    names = {str(n): f"T{n + 1}" for n in range(channels)}
    document = {"channel_names": names, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz", **facts}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def _flat(labels: dict[str, Any]) -> list[int]:
    return [n for value in labels.values() for n in (value if isinstance(value, list) else [value])]


def oblique_anisotropic_two_channels(folder: Path) -> Path:
    turn = np.array([[0, -1, 0], [np.cos(0.2), 0, -np.sin(0.2)], [np.sin(0.2), 0, np.cos(0.2)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.0, 1.0, 5.0]
    return _volumes(folder, {"background": 0, "ball": 1}, 2, affine)


def regions(folder: Path) -> Path:
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    return _volumes(folder, labels, 1, np.diag([1.2, 1.0, 2.0, 1.0]), regions_class_order=[1, 2])


def sides(folder: Path, edge: int = 40) -> Path:
    labels = {"background": 0, "left ball": 1, "left core": 2, "right ball": 3, "right core": 4}
    return _volumes(folder, labels, 1, np.diag([-1.0, 1.0, 1.5, 1.0]), edge)


def pictures(folder: Path) -> Path:
    """Decathlon layout: six RGB pictures with discs."""
    rng = np.random.default_rng(0)
    entries = []
    for n in range(6):
        rows, columns = np.indices((70 + n, 84))
        mask = ((rows - 35) ** 2 + (columns - 30 - 5 * n) ** 2 < 200).astype(np.uint8)
        colours = rng.integers(0, 120, (*mask.shape, 3)) + 100 * mask[..., None]
        for part, array in (("imagesTr", colours.astype(np.uint8)), ("labelsTr", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / part / f"disc_{n}.png")
        entries.append({"image": f"./imagesTr/disc_{n}.png", "label": f"./labelsTr/disc_{n}.png"})
    facts = {"name": "Discs", "modality": {"0": "R", "1": "G", "2": "B"}, "labels": {"0": "background", "1": "disc"}}
    (folder / "dataset.json").write_text(json.dumps({**facts, "numTraining": 6, "training": entries}))
    return folder


def _cleaned(run: Path) -> None:
    """A best.json that keeps the largest component of one label, and asks less of regions than one half."""
    plan = json.loads((run / "plan.json").read_text())
    from medmamba.plans.schema import Plan

    made = Plan.from_json(json.dumps(plan))
    label = next(name for name in made.labels if name != "background")
    name = made.default_configuration
    recipe = {
        "schema_version": 1,
        "plan_sha256": made.hash(),
        "configurations": [name],
        "folds": {name: ["fold_all"]},
        "dice": {name: 0.5},
        "cases": 4,
        "cleaning": [{"label": label, "action": "largest_component"}],
        "thresholds": {name: 0.4 for name in made.regions or ()},
    }
    (run / "best.json").write_text(json.dumps(recipe))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "mirror", "first"),
    [
        (oblique_anisotropic_two_channels, False, "imagesTr/case_0_*"),
        (regions, False, "imagesTr/case_0_*"),
        (sides, True, "imagesTr/case_0_*"),
        (pictures, False, "imagesTr/disc_0.*"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bundle_of_this_kind_gives_the_models_own_voxels(
    make: Callable[[Path], Path], mirror: bool, first: str, tmp_path: Path
) -> None:
    from medmamba.bundle.write import export_bundle
    from medmamba.inference.predictor import Predictor

    data = make(tmp_path / "data")
    run = tmp_path / "run"
    pipeline.plan(data, run, mirror="swap" if mirror else "auto")
    pipeline.train(run, fold="all", config=QUICK)
    _cleaned(run)
    images = tmp_path / "images"
    images.mkdir()
    for path in data.glob(first):
        shutil.copy(path, images)
    report = export_bundle(
        run, tmp_path / "bundle", BundleCard(licence="MIT", intended_use="test"), images, mirror=mirror
    )
    assert [case.case_id for case in report.cases] == [sorted(images.iterdir())[0].name.split(".")[0].split("_0000")[0]]
    assert report.cases[0].foreground > 0
    config = json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text())
    if mirror:
        assert config["inferer"]["swap_axis"] is not None
    native = Predictor(run, mirror=mirror, device="cpu")
    again = Predictor.from_bundle(tmp_path / "bundle", device="cpu")
    paths = sorted(images.iterdir())
    assert np.array_equal(again.predict(paths).labels, native.predict(paths).labels)
    assert again.provenance().weights_sha256 == native.provenance().weights_sha256


def _planned_with_a_coarse_stage(data: Path, run: Path, **choices: Any) -> None:
    """A plan with two stages made by hand, as small images have no low resolution of their own; both preprocessed."""
    pipeline.plan(data, run, network="plain_unet", **choices)
    document = json.loads((run / "plan.json").read_text())
    full = document["configurations"]["3d_fullres"]
    spacing = [1.5 * edge for edge in full["spacing_mm"]]
    document["configurations"]["coarse"] = full | {"name": "coarse", "spacing_mm": spacing, "decisions": []}
    document["configurations"]["fine"] = full | {"name": "fine", "previous_stage": "coarse", "decisions": []}
    (run / "plan.json").write_text(json.dumps(document))
    pipeline.plan(data, run, network="plain_unet", configurations=["3d_fullres", "coarse", "fine"], **choices)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [["fine"], ["coarse", "fine"]], ids=["cascade", "ensemble"])
def test_a_bundle_of_several_configurations_gives_the_models_own_voxels(asked: list[str], tmp_path: Path) -> None:
    from medmamba.bundle.write import export_bundle
    from medmamba.inference.predictor import Predictor

    data, run = sides(tmp_path / "data", edge=24), tmp_path / "run"
    _planned_with_a_coarse_stage(data, run, mirror="swap", patch_size=(16, 16, 16), batch_size=2)
    pipeline.train(run, configuration="fine", fold=0, config=QUICK)
    image = data / "imagesTr" / "case_0_0000.nii.gz"
    report = export_bundle(
        run, tmp_path / "bundle", BundleCard(licence="MIT", intended_use="test"), image, configuration=asked
    )
    assert report.cases[0].foreground > 0
    facts = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert sorted(facts["medmamba"]["stages"]) == ["coarse", "fine"]
    channels = facts["network_data_format"]["inputs"]["image"]["num_channels"]
    assert channels == (5 if asked == ["fine"] else 1)  # the image, and a channel for each label of the first stage
    alone = tmp_path / "moved"
    (tmp_path / "bundle").rename(alone)
    native, again = (Predictor(model, configuration=asked, device="cpu") for model in (run, alone))
    assert np.array_equal(again.predict(image).labels, native.predict(image).labels)
    assert again.provenance().weights_sha256 == native.provenance().weights_sha256
    assert [member.name for member in Predictor.from_bundle(alone, device="cpu").model.ensembles] == asked
