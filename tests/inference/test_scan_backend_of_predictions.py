"""The scan backend of a prediction: chosen, printed, stored in report.json, and used again to reproduce it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medmamba import pipeline
from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import ConfigError
from medmamba.geometry import Grid, affine_from
from medmamba.images import write_label_map
from medmamba.inference.folder.run import reproduce
from medmamba.inference.predictor import Predictor
from medmamba.models.checkpoint import save_checkpoint
from medmamba.networks.build import build_network
from medmamba.plans.schema import Plan


@pytest.fixture(scope="module")
def fold_with_scans(tmp_path_factory, small_run):
    """An untrained fold of vm_unet in 2D."""
    document = json.loads((small_run / "plan.json").read_text())
    document["default_configuration"] = "2d"
    plan = Plan.from_json(json.dumps(document))
    folder = tmp_path_factory.mktemp("scans") / "fold_0"
    numbers = {
        "name": "vm_unet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": len(plan.labels),
        "strides": [[1, 1], [2, 2]],
        "features_per_stage": [4, 8],
        "deep_supervision": False,
    }
    torch.manual_seed(0)
    write_text(folder / "plan.json", plan.to_json())
    facts = {"plan_sha256": plan.hash(), "configuration": "2d", "fold": "0", "network": numbers}
    write_json(folder / "model.json", facts)
    save_checkpoint(folder / "checkpoints", build_network(**numbers), None, {"progress": {}})
    return folder


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    grid = Grid((20, 24, 5), affine_from((1.0, 1.0, 3.0)))
    values = np.random.default_rng(0).integers(0, 200, grid.shape)
    write_label_map(tmp_path / "images" / "a.nii.gz", values, like=grid)
    return tmp_path / "images"


def test_the_backend_that_runs_is_printed_and_stored(fold_with_scans, images, tmp_path):
    lines: list[str] = []
    choices = {"mirror": False, "device": "cpu"}
    pipeline.predict(fold_with_scans, images, tmp_path / "a", scan_backend="torch", on_message=lines.append, **choices)
    assert lines[0] == "Predicting with device cpu, precision fp32, scan backend torch."
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["model"]["settings"]["scan_backend"] == "torch"
    automatic = Predictor(fold_with_scans, **choices).provenance().settings.scan_backend
    assert automatic in ("cpp", "torch")  # never "auto": what it was resolved to


def test_a_report_is_reproduced_with_its_own_backend(fold_with_scans, images, tmp_path, monkeypatch):
    pipeline.predict(fold_with_scans, images, tmp_path / "a", mirror=False, device="cpu", scan_backend="torch")
    assert reproduce(tmp_path / "a" / "report.json", fold_with_scans, images, device="cpu").same == ("a",)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    report["model"]["settings"]["scan_backend"] = "triton"
    (tmp_path / "a" / "report.json").write_text(json.dumps(report))
    with pytest.raises(ConfigError, match="'triton' cannot run"):
        reproduce(tmp_path / "a" / "report.json", fold_with_scans, images, device="cpu")
    del report["model"]["settings"]["scan_backend"]  # as version 0.1 wrote it
    (tmp_path / "a" / "report.json").write_text(json.dumps(report))
    assert len(reproduce(tmp_path / "a" / "report.json", fold_with_scans, images, device="cpu").same) <= 1


def test_a_backend_that_cannot_run_is_refused_before_anything_is_predicted(fold_with_scans, images, tmp_path):
    with pytest.raises(ConfigError, match=r"'triton' cannot run: .* not cpu"):
        pipeline.predict(fold_with_scans, images, tmp_path / "a", device="cpu", scan_backend="triton")
    assert not (tmp_path / "a").exists()
