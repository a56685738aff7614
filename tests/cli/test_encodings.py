"""Names that a terminal or a file system cannot show end no computation."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_series import write_series
from safetensors.torch import save
from tiny_models import make_fold, write_noise

from medmamba.cli.main import run as main
from medmamba.images import read_image
from medmamba.models.run_folder import read_plan
from medmamba.networks.weight_file import read_weight_file
from medmamba.options import NumbersByName as Named
from medmamba.options import Options, option
from medmamba.pipeline import predict
from medmamba.plans.nnunet_files import nnunet_name
from medmamba.preprocessing.store import CaseReader

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_is_printed_in_any_encoding(encoding):
    code = (
        "import sys; from medmamba.cli import main; from medmamba.cli.console import console, print_json\n"
        "def app(**ignored):\n"
        "  console.print('\\u0141 \\U0001f600 \\udcfc \\u2026')\n"
        "  print_json({'a': '\\u0141\\udcfc'})\n"
        "main.app = app; main.run([])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    line, _, answer = done.stdout.decode(encoding).partition("\n")
    assert line == "\\u0141 \\U0001f600 \\udcfc \\u2026" if encoding == "ascii" else line.startswith("\\u0141")
    assert json.loads(answer) == {"a": "\u0141\udcfc"}


def test_a_file_name_that_is_no_text_has_a_mask_and_a_report(tiny_run, tmp_path):
    images = write_noise(tmp_path / "images", 1, (18, 24, 18))
    name = os.fsencode(images) + b"/M\xfcller.nii.gz"
    os.rename(images / "patient_0.nii.gz", name)
    for _ in range(2):
        report = predict(tiny_run, images, tmp_path / "masks", folds=[0], mirror=False, resume=True)
        assert list(report.done) == ["M\\udcfcller"]
    assert report.resumed == ["M\\udcfcller"]
    assert (tmp_path / "masks" / "M\\udcfcller.nii.gz").is_file()
    assert "M\\udcfcller" in json.loads((tmp_path / "masks" / "report.json").read_text(encoding="utf-8"))["cases"]


def test_every_command_takes_names_that_are_no_text(small_dataset, tmp_path):
    """Cases, dataset, run and outputs whose names are Latin-1 on a UTF-8 system, printed to an ASCII terminal."""
    top = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe4ta"))
    names = [b"M\xfcller", "\u60a3\u8005".encode(), b"a\xff_b", b"plain"]
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (top / folder).mkdir(parents=True)
        ending = b"_0000.nii.gz" if folder.startswith("images") else b".nii.gz"
        for source, name in zip(sorted((small_dataset / folder).iterdir()), names, strict=False):
            name = name if folder.endswith("Tr") else b"test_" + name
            shutil.copyfile(os.fsencode(source), os.fsencode(top / folder) + b"/" + name + ending)
    facts = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Ant\u00e9rieur": 1, "Posterior": 2}}
    (top / "dataset.json").write_text(json.dumps({**facts, "numTraining": 4, "file_ending": ".nii.gz"}))
    run, masks = top / "r\udcfcn", top / "m\udce4sks"
    images, truths = top / "imagesTs", top / "labelsTs"
    plan = ["--patch-size", "16,24,16", "--batch-size", "2", "--network", "plain_unet"]
    assert _called("plan", top, "-o", run, *plan).count("rocess: 4 cases") == 1
    for number in (0, 1):
        make_fold(run / "models" / "3d_fullres" / f"fold_{number}", read_plan(run / "plan.json"), number)
    answers = [
        _called("explain", run, "--what-if", "--batch-size 4"),
        _called("find-best", run, "--no-mirror"),
        _called("predict", run, images, "-o", masks, "--no-mirror"),
        _called("predict", run, images, "-o", masks, "--no-mirror", "--resume", "--json"),
        _called("evaluate", masks, truths, "--compare", masks),
        _called("reproduce", masks / "report.json", run, images),
        _called("report", run),
        _called("convert", "dataset", top, "-o", top / "c\udcf6nverted", "--layout", "decathlon"),
        _called("plan", top / "c\udcf6nverted", "-o", top / "r\udcfcn2", *plan),
        _called("convert", "plans", run, "-o", top / "pl\udce4ns.json"),
        _called("convert", "plans", top / "pl\udce4ns.json", "-o", top / "2\udce4", "--dataset", top / "dataset.json"),
    ]
    assert "2 masks" in answers[2]
    assert sorted(json.loads(answers[3])["cases"]) == ["test_M\\udcfcller", "test_\u60a3\u8005"]
    assert (masks / "test_M\\udcfcller.nii.gz").is_file()
    assert sorted(path.name for path in (run / "preprocessed" / "3d_fullres").iterdir()) == [
        "M\\udcfcller", "a\\udcff_b", "plain", "\u60a3\u8005"
    ]  # fmt: skip
    case = CaseReader(run / "preprocessed" / "3d_fullres" / "plain")
    assert case.read_whole()[0].shape[1:] == case.shape


def test_a_dicom_series_whose_files_have_names_that_are_no_text(tmp_path):
    """ITK would abort the process."""
    series = write_series(tmp_path / "series", np.arange(4 * 9 * 10).reshape(4, 9, 10).astype(np.int16))
    expected = read_image(series).array
    renamed = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xe9rie"))
    series.rename(renamed)
    for path in sorted(renamed.iterdir()):
        path.rename(os.fsdecode(os.fsencode(path) + b"\xff.dcm"))
    assert np.array_equal(read_image(renamed).array, expected)


def test_weights_whose_names_are_no_text(tmp_path):
    path = tmp_path / "w\udcfc.safetensors"
    path.write_bytes(save({"a": torch.ones(2)}))
    assert read_weight_file(path)["a"].tolist() == [1, 1]
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    (tmp_path / "w.pt").rename(tmp_path / "w\udcfc.pt")
    assert read_weight_file(tmp_path / "w\udcfc.pt", mapped=True)["a"].tolist() == [1, 1]


def _called(*arguments) -> str:
    """What a command prints to an ASCII terminal; it ends well and without a word about encodings."""
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii", "backslashreplace") for _ in range(2)]
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout, sys.stderr = before
    for stream in streams:
        stream.flush()
    said, errors = (stream.buffer.getvalue().decode("ascii") for stream in streams)
    assert not code, errors
    assert "codec" not in said + errors
    return said


class Weights(Options):
    """One option of numbers by name."""

    weights: Named | None = option(None, "Weights.")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("Kidney, left=2", {"Kidney, left": 2}),
        ("GTV=1; boost=3,liver=1e-1", {"GTV=1; boost": 3, "liver": 0.1}),
        ("T1, a=b, c=2 , x=1", {"T1, a=b, c": 2, "x": 1}),
        (["Kidney, left=2", "liver=1"], {"Kidney, left": 2, "liver": 1}),
    ],
)
def test_label_names_may_hold_commas_and_equals_signs(text, weights):
    assert Weights.of(weights=text).weights == weights


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("Dataset027_ACDC", "Dataset027_ACDC"),
        ("Task04_Hippocampus", "Dataset004_Hippocampus"),
        ("kits-like", "Dataset900_kits_like"),
        ("患者", "Dataset900__"),
    ],
)
def test_plans_for_nnunet_have_a_name_that_it_trains(name, theirs):
    assert nnunet_name(name) == theirs
