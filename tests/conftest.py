"""Fixtures that several packages share."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def example_data() -> Path:
    """The 60 hippocampus cases of the demonstration."""
    return ROOT / "examples" / "data" / "hippocampus"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout, or in the folder that MEDMAMBA_SHARED names."""
    folder = Path(os.environ.get("MEDMAMBA_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name the folder above it by MEDMAMBA_SHARED")
    return folder


AFFINE = np.array([[-0.8, 0, 0, 40], [0, 0, 3, -20], [0, 1.25, 0, 7], [0, 0, 0, 1.0]])


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Writes an array as NIfTI with nibabel; ``header`` sets fields, ``patch`` changes the raw bytes behind it."""

    def _save(
        name: str,
        array: np.ndarray,
        affine: np.ndarray = AFFINE,
        *,
        kind: type = nib.Nifti1Image,
        patch: Callable[[bytearray], bytes | None] | None = None,
        **header: object,
    ) -> Path:
        image = kind(array, affine)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        image.header.set_xyzt_units("mm")
        raw = bytearray(image.to_bytes())
        fields = np.frombuffer(raw, dtype=image.header.template_dtype, count=1)[0]
        view = np.frombuffer(memoryview(raw)[: fields.nbytes], dtype=image.header.template_dtype)
        for key, value in header.items():
            view[key] = value
        del view
        if patch is not None:
            raw = patch(raw) or raw
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(bytes(raw), mtime=0) if name.endswith(".gz") else bytes(raw))
        return path

    return _save


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory, example_data) -> Path:
    """A Decathlon folder of six of the real cases, two of them for testing."""
    folder = tmp_path_factory.mktemp("data") / "hippocampus_small"
    return copy_dataset(example_data, folder, training=4, test=2)


def copy_dataset(source: Path, folder: Path, *, training: int, test: int) -> Path:
    """The first cases of a Decathlon folder as a dataset of its own."""
    facts = json.loads((source / "dataset.json").read_text())
    facts["training"] = facts["training"][:training]
    facts["test"] = facts["test"][:test]
    facts["numTraining"], facts["numTest"] = training, test
    names = [name for entry in facts["training"] for name in entry.values()] + facts["test"]
    names += [name.replace("imagesTs", "labelsTs") for name in facts["test"]]
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, small_dataset) -> Path:
    """The four training cases planned and preprocessed with a patch that trains in seconds."""
    import medmamba

    run = tmp_path_factory.mktemp("runs") / "run"
    medmamba.plan(small_dataset, run, patch_size=(16, 24, 16), batch_size=2)
    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, small_run) -> Path:
    """A run whose folds 0 and 1 are trained."""
    from tiny_models import make_fold

    from medmamba.disk.atomic import write_text
    from medmamba.plans.schema import Plan

    run = tmp_path_factory.mktemp("tiny") / "run"
    plan = Plan.from_json((small_run / "plan.json").read_text())
    for name in ("plan.json", "fingerprint.json", "splits.json"):
        write_text(run / name, (small_run / name).read_text())
    for seed in (0, 1):
        make_fold(run / "models" / "3d_fullres" / f"fold_{seed}", plan, seed)
    return run


@pytest.fixture
def registrations_undone():
    """Networks, planner facts, routes, normalisations and metrics that a test registers are forgotten after it."""
    from medmamba.evaluation.metrics import METRICS
    from medmamba.networks import routes
    from medmamba.networks.planned.registry import NETWORKS
    from medmamba.plans.cost.blocks import COSTS
    from medmamba.plans.families import FAMILIES
    from medmamba.plans.normalizers import NORMALIZERS
    from medmamba.plans.route_sets import ROUTE_COUNT
    from medmamba.preprocessing.normalize import FUNCTIONS

    tables = (METRICS, NETWORKS, FAMILIES, COSTS, ROUTE_COUNT, routes._ROUTES, NORMALIZERS, FUNCTIONS)
    before = [dict(table) for table in tables]
    yield
    for table, own in zip(tables, before, strict=True):
        table.clear()
        table.update(own)
