"""A model that predicts in milliseconds: the plan of the small dataset, a tiny U-Net with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medmamba.atomic import write_json, write_text
from medmamba.networks.registry import build_network
from medmamba.plans.schema import Plan
from medmamba.training.checkpoint import save_checkpoint

TINY = {
    "name": "plain_unet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "features_per_stage": [4, 8, 8],
    "blocks_per_stage": [1, 1, 1],
    "kernels": [[3, 3, 3]] * 3,
    "stem": "conv",
    "deep_supervision": False,
}


def make_fold(folder: Path, plan: Plan, seed: int) -> Path:
    """A trained fold: plan, facts and one checkpoint of random weights."""
    torch.manual_seed(seed)
    network = build_network(**TINY)
    write_text(folder / "plan.json", plan.to_json())
    write_json(
        folder / "model.json",
        {"plan_sha256": plan.hash(), "configuration": "3d_fullres", "fold": str(seed), "network": TINY},
    )
    save_checkpoint(folder / "checkpoints", network, None, {"progress": {}})
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, small_run) -> Path:
    """A run whose folds 0 and 1 are trained."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    plan = Plan.from_json((small_run / "plan.json").read_text())
    for name in ("plan.json", "fingerprint.json", "splits.json"):
        write_text(run / name, (small_run / name).read_text())
    for seed in (0, 1):
        make_fold(run / "models" / "3d_fullres" / f"fold_{seed}", plan, seed)
    return run


@pytest.fixture(scope="session")
def raw_fold(tmp_path_factory, small_run) -> Path:
    """A fold whose plan leaves intensities alone, wants 1 mm and has no fingerprint: for identity networks."""
    document = json.loads((small_run / "plan.json").read_text())
    document["normalization"][0] |= {"scheme": "none", "use_mask": False}
    plan = Plan.from_json(json.dumps(document))
    return make_fold(tmp_path_factory.mktemp("raw") / "fold_0", plan, 0)
