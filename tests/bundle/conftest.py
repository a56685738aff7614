"""A model trained for two steps: its masks mean nothing, but they must be the same everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, small_run) -> Path:
    """A run folder with one trained fold."""
    from medmamba import pipeline
    from medmamba.training.config import TrainConfig

    run = tmp_path_factory.mktemp("tiny") / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("models", ".lock"))
    pipeline.train(run, fold="all", config=TrainConfig(steps=2, steps_per_epoch=2, workers=0, warmup_steps=0))
    return run


@pytest.fixture(scope="session")
def one_image(small_dataset) -> Path:
    """A test image of the small dataset."""
    return sorted((small_dataset / "imagesTs").glob("*.nii.gz"))[0]


@pytest.fixture(scope="session")
def exported(tiny_model, one_image, tmp_path_factory):
    """The report of its export as a bundle."""
    pytest.importorskip("ignite", reason="MONAI's bundle commands need the extra 'bundle'")
    pytest.importorskip("fire", reason="MONAI's bundle commands need the extra 'bundle'")
    from bundle_card import CARD

    from medmamba.bundle.write import export_bundle

    return export_bundle(tiny_model, tmp_path_factory.mktemp("out") / "bundle", CARD, one_image, mirror=False)
