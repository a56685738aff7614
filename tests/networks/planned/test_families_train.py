"""Every registered network goes through the commands on real data: planned, trained, asked for masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import pytest
from PIL import Image
from typer.testing import CliRunner

from medmamba.cli.main import app
from medmamba.networks import available_networks

Run = tuple[Path, Path]  # a planned run and an image that it has not seen


def _call(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def volumes(small_run: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = tmp_path_factory.mktemp("volumes") / "run"
    shutil.copytree(small_run, run)
    return run, min((small_dataset / "imagesTs").iterdir())


@pytest.fixture(scope="module")
def pictures(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twelve microscopy images in colour, and one more."""
    source, folder = shared_data / "nuclei2018", tmp_path_factory.mktemp("pictures")
    facts = json.loads((source / "dataset.json").read_text())
    wanted = facts["training"][:13]
    for entry in wanted:
        for name in entry.values():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    facts |= {"training": wanted[:12], "numTraining": 12, "test": [], "numTest": 0}
    (folder / "dataset.json").write_text(json.dumps(facts))
    _call("plan", folder, "-o", folder / "run", "--patch-size", "64,64", "--batch-size", 2)
    return folder / "run", folder / wanted[12]["image"]


@pytest.mark.slow
@pytest.mark.parametrize("name", available_networks())
@pytest.mark.parametrize("data", ["pictures", "volumes"])
def test_it_trains_and_predicts(data: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run, image = request.getfixturevalue(data)
    length = ("--steps", 50, "--steps-per-epoch", 10, "--workers", 0, "--augment", "none")
    _call("train", run, "--network", name, "--fold", "all", *length, "--restart")
    (state,) = run.glob("models/*/fold_all/checkpoints/last/state.json")
    facts = json.loads(state.read_text())
    losses = [epoch["loss"] for epoch in facts["progress"]["epochs"]]
    print(f"{name} {data}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
    assert facts["network"]["name"] == name
    assert losses[-1] < 0.95 * losses[0]

    _call("predict", run, image, "-o", tmp_path, "--no-mirror", "--fold", "all")
    (mask,) = [path for path in tmp_path.iterdir() if path.suffix in (".gz", ".png")]
    if data == "volumes":
        assert nib.load(mask).shape == nib.load(image).shape
    else:
        assert Image.open(mask).size == Image.open(image).size
