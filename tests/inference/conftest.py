"""A fold for networks that give back what they see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import make_fold

from medmamba.plans.schema import Plan


@pytest.fixture(scope="session")
def raw_fold(tmp_path_factory, small_run) -> Path:
    """A fold whose plan leaves intensities alone, wants 1 mm and has no fingerprint: for identity networks."""
    document = json.loads((small_run / "plan.json").read_text())
    document["normalization"][0] |= {"scheme": "none", "use_mask": False}
    plan = Plan.from_json(json.dumps(document))
    return make_fold(tmp_path_factory.mktemp("raw") / "fold_0", plan, 0)
