"""A bundle and a pretraining that are killed while they are made again keep the old one; changed images are named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from tiny_models import write_noise

import medmamba
from medmamba.disk import atomic
from medmamba.disk.leftovers import remove_leftovers
from medmamba.disk.own_files import file_sha256
from medmamba.errors import InputError
from medmamba.models.checkpoint import read_state
from medmamba.preprocessing import dataset
from medmamba.training.config import TrainConfig
from medmamba.training.pretrain import pretrain

ROOT = Path(__file__).resolve().parents[2]
EXPORT = """
import sys
from medmamba.bundle import write
from medmamba.bundle.options import BundleCard
write.run_in_monai = lambda part, images, masks: ""
write.compare_with_native = lambda predictor, cases, masks: []
write.export_graph = lambda part, kind: []
card = BundleCard(licence="CC-BY-4.0", intended_use=sys.argv[4])
write.export_bundle(sys.argv[1], sys.argv[2], card, sys.argv[3], folds=[0])
"""
RENAMES = """
import pathlib, sys
from medmamba.disk import atomic
atomic._exchange = lambda first, second: False
with atomic.replace_folder(sys.argv[1]) as part:
    pathlib.Path(part, "a").write_text("new")
"""
PRETRAIN = """
import sys
from medmamba.training.config import TrainConfig
from medmamba.training.pretrain import pretrain
pretrain(sys.argv[1], config=TrainConfig(steps=int(sys.argv[2]), steps_per_epoch=1, workers=0), resume=True)
"""


def run_python(code: str, *words: object, killed_at: str = "") -> int:
    """Exit code of a program, killed with SIGKILL at a point of the writing of files."""
    environment = {**os.environ, "MEDMAMBA_CRASH_AT": killed_at, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True).returncode


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_an_export_that_is_killed_leaves_the_old_bundle_whole(tiny_run, tmp_path):
    images, bundle = write_noise(tmp_path / "images", 1, (20, 24, 20)), tmp_path / "bundle"
    assert run_python(EXPORT, tiny_run, bundle, images, "the first") == 0
    before = contents(bundle)
    for point in ("fsync:1", "verify:1"):  # the new one is whole beside it, and not renamed yet
        assert run_python(EXPORT, tiny_run, bundle, images, "the second", killed_at=point) == -9
        assert contents(bundle) == before
    assert run_python(EXPORT, tiny_run, bundle, images, "the third") == 0
    assert "the third" in (bundle / "docs" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "images"]


def test_where_names_cannot_be_exchanged_a_kill_between_two_renames_loses_no_folder(tmp_path):
    folder = tmp_path / "bundle"
    with atomic.replace_folder(folder) as part:
        (part / "a").write_text("old")
    assert run_python(RENAMES, folder, killed_at="replace:1") == -9
    assert not folder.exists()
    remove_leftovers(tmp_path, shared=True, of=folder.name)  # as the next that writes the same does at first
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_pretraining_that_is_killed_keeps_a_whole_checkpoint_and_goes_on(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("models", "report", ".lock", "pretrained"))
    pretrain(run, config=TrainConfig(steps=1, steps_per_epoch=1, workers=0))
    last = run / "pretrained" / "3d_fullres" / "checkpoints" / "last"
    assert run_python(PRETRAIN, run, 3, killed_at="verify:4") == -9
    step = read_state(last)["progress"]["step"]
    assert 1 <= step < 3
    hashes = read_state(last)["sha256"]
    assert {name: file_sha256(last / name) for name in hashes} == hashes
    assert run_python(PRETRAIN, run, 3) == 0
    assert read_state(last)["progress"]["step"] == 3
    assert not list(run.rglob("*.part"))


def test_unlabelled_images_of_another_content_or_plan_are_not_taken_from_the_store(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("models", "report", ".lock", "pretrained"))
    images = write_noise(tmp_path / "images", 1, (20, 24, 20))
    config = TrainConfig(steps=1, steps_per_epoch=1, workers=0)
    pretrain(run, images=images, config=config)
    store = run / "unlabelled" / "3d_fullres" / "patient_0"
    first, made = contents(store), (store / "image.b2nd").stat().st_mtime_ns
    pretrain(run, images=images, config=config, restart=True)
    assert (store / "image.b2nd").stat().st_mtime_ns == made  # the same image: ready
    path = images / "patient_0.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata()[::-1] ** 2, image.affine), path)
    with pytest.raises(InputError, match=r"was pretrained on other images\. Give the same --images as then"):
        pretrain(run, images=images, config=config.model_copy(update={"steps": 2}), resume=True)
    pretrain(run, images=images, config=config, restart=True)
    assert contents(store)["image.b2nd"] != first["image.b2nd"]


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_a_file_that_changes_between_measuring_and_preprocessing_is_named(part, small_dataset, tmp_path, monkeypatch):
    data, run = Path(shutil.copytree(small_dataset, tmp_path / "data")), tmp_path / "run"
    path = min((data / part).iterdir())
    load = dataset.load_case

    def changed_meanwhile(spec, case, options):
        image = nib.load(path)
        values = image.get_fdata()
        values[0, 0, 0] = 1 - values[0, 0, 0]
        nib.save(nib.Nifti1Image(values.astype(image.get_data_dtype()), image.affine), path)
        monkeypatch.setattr(dataset, "load_case", load)
        return load(spec, case, options)

    monkeypatch.setattr(dataset, "load_case", changed_meanwhile)
    with pytest.raises(
        InputError, match=rf"{path.name}: changed while its dataset was planned\. Run the command again"
    ):
        medmamba.plan(data, run, patch_size=(16, 24, 16), batch_size=2, workers=1)
    assert not (run / "plan.json").exists()
    assert not (run / "preprocessed").exists()
