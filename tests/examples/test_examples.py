"""Every example runs as it stands; what cannot run here is checked as far as it can be."""

from __future__ import annotations

import ast
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import write_series
from example_datasets import pictures, small_copy, volumes
from installed import install
from PIL import Image
from safetensors.torch import save_file
from typer.main import get_command

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_every_example_is_listed_and_tested():
    table = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.rglob("*"):
        if path.suffix in (".py", ".sh") and "data" not in path.relative_to(EXAMPLES).parts:
            assert f"({path.relative_to(EXAMPLES)})" in table, path


@pytest.mark.slow
def test_hippocampus_end_to_end(example, example_data, tmp_path):
    data = small_copy(example_data, tmp_path / "data", training=5, test=1)
    printed = example("hippocampus.py", tmp_path / "out", "--data", data, "--steps", 2, "--minutes", 1)
    assert re.search(r"mean Dice of 1 test cases: 0\.\d{4}", printed)
    for name in ("run/report/index.html", "evaluation.html", "evaluation.json"):
        assert (tmp_path / "out" / name).is_file()


def test_a_published_mamba_block(example, tmp_path):
    shapes = {"in_proj.weight": (48, 12), "conv1d.weight": (24, 1, 4), "conv1d.bias": (24,), "x_proj.weight": (18, 24)}
    shapes |= {
        "dt_proj.weight": (24, 2),
        "dt_proj.bias": (24,),
        "A_log": (24, 8),
        "D": (24,),
        "out_proj.weight": (12, 24),
    }
    weights = {f"layers.3.mixer.{name}": torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "mamba.safetensors")
    printed = example("mamba_block.py", tmp_path / "mamba.safetensors", "layers.3.mixer")
    assert "12 channels, 8 states, 1704 parameters" in printed
    assert float(re.search(r"reference: (\S+);", printed)[1]) < 1e-5
    assert printed.strip().endswith("True")


@pytest.mark.slow
def test_colour_pictures(example, tmp_path):
    printed = example("nuclei_rgb.py", pictures(tmp_path / "nuclei"), tmp_path / "out", "--steps", 2)
    assert "p0.png" in printed
    with Image.open(tmp_path / "out" / "p0.png") as mask:
        assert (mask.mode, mask.size) == ("L", (72, 64))


@pytest.mark.slow
def test_two_phases_of_a_patient_stay_together(example, tmp_path):
    names = [f"scd_{n}_{phase}" for n in range(5) for phase in ("ED", "ES")]
    data = volumes(tmp_path / "lv", names, (48, 48, 8), (1.3, 1.3, 8.0), ["MRI"], "LV cavity")
    printed = example("cardiac_by_patient.py", data, tmp_path / "out", "--steps", 2)
    assert "LV cavity" in printed
    assert nib.load(tmp_path / "out" / "scd_0_ED.nii.gz").shape == (48, 48, 8)


@pytest.mark.slow
def test_four_sequences(example, tmp_path):
    sequences = ["FLAIR", "T1", "T1 post contrast", "T2"]
    data = volumes(tmp_path / "ms", [f"ms_{n}" for n in range(5)], (40, 40, 32), (1, 1, 1), sequences, "lesion")
    printed = example("ms_four_sequences.py", data, tmp_path / "out", "--steps", 2)
    assert "channels FLAIR, T1, T1 post contrast, T2" in printed
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_hospitals_inbox_is_worked_off_once_and_bad_studies_are_told(example, tiny_run, tmp_path):
    pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
    noise = np.random.default_rng(0).integers(0, 900, (17, 22, 18)).astype(np.int16)
    write_series(tmp_path / "in" / "study_1", noise, **{"0020_0052": "1.2.9"})
    write_series(tmp_path / "in" / "study_3", noise)  # without a frame of reference
    (tmp_path / "in" / "study_2").mkdir()
    (tmp_path / "in" / "study_2" / "x.txt").write_text("x")
    arguments = (tiny_run, tmp_path / "in", tmp_path / "out", "--once", "--fast")
    printed = example("hospital_pipeline.py", *arguments)
    assert re.search(r"study_1: (ok|review)\nstudy_2: failed\nstudy_3: (ok|review)\n", printed)
    found = {path.name for path in (tmp_path / "out" / "study_1").iterdir()}
    assert found == {"mask.nii.gz", "seg.dcm", "report.json", "report.html"}
    assert "CANARY" not in (tmp_path / "out" / "study_1" / "report.json").read_text()
    kept = tmp_path / "out" / "study_3"
    assert {path.name for path in kept.iterdir()} == {"mask.nii.gz", "report.json", "report.html"}
    reason = json.loads((kept / "report.json").read_text())["not_written"]["dicom_seg"]
    assert "FrameOfReferenceUID" in reason
    assert f"<h2>Not written</h2>\n<ul><li>dicom_seg: {reason[:30]}" in (kept / "report.html").read_text()
    assert "study_2" in json.loads((tmp_path / "out" / "study_2" / "failed.json").read_text())["reason"]
    assert example("hospital_pipeline.py", *arguments) == ""


@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_and_predicts(example, example_data, tmp_path):
    data = small_copy(example_data, tmp_path / "data", training=5, test=1)
    run, site = tmp_path / "run", install(EXAMPLES / "plugin", tmp_path / "site")
    paths = {"PYTHONPATH": f"{site}{os.pathsep}{EXAMPLES.parent}"}

    def medmamba(*words: object) -> None:
        command = [sys.executable, "-c", "from medmamba.cli.main import run; raise SystemExit(run())", *map(str, words)]
        done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    medmamba("plan", data, "-o", run, "--network", "gated_unet", "--patch-size", "16,24,16", "--batch-size", 2)
    medmamba("train", run, "--fold", 0, "--steps", 1, "--workers", 0)
    medmamba("predict", run, data / "imagesTs", "-o", tmp_path / "masks", "--fast")
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 1
    card = ("--licence", "MIT", "--intended-use", "A test.")
    medmamba("export", run, "-o", tmp_path / "bundle", "--check-on", data / "imagesTs", "--no-mirror", *card)
    assert (tmp_path / "bundle" / "scripts" / "external" / "gated_unet.py").is_file()


def test_the_deploy_application_compiles_and_its_names_are_in_a_bundle(tiny_run, tmp_path):
    path = EXAMPLES / "deploy" / "app.py"
    py_compile.compile(str(path), cfile=str(tmp_path / "app.pyc"), doraise=True)
    names = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    from medmamba import Predictor
    from medmamba.bundle.card import metadata
    from medmamba.bundle.options import BundleCard

    ensemble = Predictor(tiny_run).model.ensembles[0]
    facts = metadata(BundleCard(licence="MIT", intended_use="test"), ensemble, {"dataset": "d"})
    assert {"pred", "image"} <= names
    assert facts["network_data_format"]["outputs"]["pred"]["channel_def"]["0"] == "background"
    assert "image" in facts["network_data_format"]["inputs"]


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm_array.sh"])
def test_shell_examples_are_well_formed_and_name_options_that_exist(name):
    from medmamba.cli.main import app

    path = EXAMPLES / name
    subprocess.run([shutil.which("bash") or "bash", "-n", str(path)], check=True)
    commands = get_command(app).commands
    lines = [line for line in path.read_text().splitlines() if "medmamba" in line and not line.startswith("#")]
    used = 0
    for line in lines:
        for command in re.findall(r'medmamba"? (train|predict)', line):
            known = {option for parameter in commands[command].params for option in parameter.opts}
            options = set(re.findall(r"(?<= )--?[a-z][\w-]*", line.split(command, 1)[1]))
            assert options <= known, options - known
            used += 1
    assert used == 2


def test_a_slurm_array_predicts_its_part(tiny_run, small_dataset, tmp_path):
    binary = tmp_path / "bin" / "medmamba"
    binary.parent.mkdir()
    binary.write_text(f"#!{sys.executable}\nfrom medmamba.cli.main import run\nrun()\n")
    binary.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{binary.parent}:{os.environ['PATH']}",
        "RUN": str(tiny_run),
        "IMAGES": str(small_dataset / "imagesTs"),
        "MASKS": str(tmp_path / "out"),
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_COUNT": "2",
    }
    subprocess.run(["bash", str(EXAMPLES / "slurm_array.sh"), "predict"], env=environment, check=True)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1
