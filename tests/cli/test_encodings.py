"""Names that a terminal or a file system cannot show end no computation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_noise

from medmamba.options import NumbersByName as Named
from medmamba.options import Options, option
from medmamba.pipeline import predict
from medmamba.plans.nnunet_files import nnunet_name

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
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=120)
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
