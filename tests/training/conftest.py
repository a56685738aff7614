"""A small planned dataset as clinics have them: odd label values, sides, an ignore value, cases not fully annotated."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

LABELS = {"0": "background", "205": "left kidney", "420": "right kidney"}


@pytest.fixture(scope="session")
def clinic_dataset(tmp_path_factory):
    """Six volumes of 16 x 16 x 8; in the last only the left kidney was looked for."""
    folder = tmp_path_factory.mktemp("clinic") / "kidneys"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    training = []
    for number in range(6):
        image = rng.normal(0, 0.3, (16, 16, 8)).astype(np.float32) + 5
        labels = np.zeros((16, 16, 8), np.int16)
        image[2:6, 4:10, 2:6] += 3
        image[10:14, 4:10, 2:6] += 3
        labels[2:6, 4:10, 2:6], labels[10:14, 4:10, 2:6] = 205, 420
        labels[:, 14:] = 9
        entry = {"image": f"./imagesTr/k_{number}.nii.gz", "label": f"./labelsTr/k_{number}.nii.gz"}
        if number == 5:
            labels[labels == 420] = 0
            entry["annotated"] = ["left kidney"]
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / entry["image"])
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / entry["label"])
        training.append(entry)
    facts = {
        "name": "kidneys",
        "modality": {"0": "MRI"},
        "labels": LABELS,
        "ignore": 9,
        "numTraining": 6,
        "numTest": 0,
        "training": training,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


class Clock:
    """The clock of the supervision of data workers: seconds pass quickly while a test wants them to."""

    def __init__(self) -> None:
        self.fast: Callable[[], bool] = lambda: False
        self._ahead = 0.0

    def monotonic(self) -> float:
        if self.fast():
            self._ahead += 5.0
        return time.monotonic() + self._ahead


@pytest.fixture
def clock(monkeypatch) -> Clock:
    from medmamba.training import workers

    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    return clock


@pytest.fixture(scope="session")
def planned_clinic(clinic_dataset, tmp_path_factory):
    """The six volumes planned, for copies only."""
    import medmamba

    run = tmp_path_factory.mktemp("clinic_run") / "run"
    medmamba.plan(clinic_dataset, run, network="plain_unet", patch_size=(8, 8, 8), batch_size=2)
    return run


@pytest.fixture
def clinic_run(planned_clinic, tmp_path):
    """A fresh copy of the planned run."""
    target = tmp_path / "run"
    shutil.copytree(planned_clinic, target, ignore=shutil.ignore_patterns("models", ".lock"))
    return target
