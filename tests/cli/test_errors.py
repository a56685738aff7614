"""What a person sees when something is wrong: one clear line, an exit code, no traceback, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmamba.cli.main import run as medmamba


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            medmamba([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        return stop.value.code, shown.err.strip()

    return run


@pytest.fixture
def dataset(small_dataset, tmp_path) -> Path:
    return Path(shutil.copytree(small_dataset, tmp_path / "dataset"))


def _first(dataset, folder):
    return sorted((dataset / folder).iterdir())[0]


def test_a_missing_dataset(call, tmp_path):
    code, text = call("plan", tmp_path / "nowhere", "-o", tmp_path / "run")
    assert code == 2
    assert "nowhere" in text
    assert len(text.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_truncated_image_names_case_and_cause(call, dataset, tmp_path):
    path = _first(dataset, "imagesTr")
    path.write_bytes(path.read_bytes()[:-3000])
    code, text = call("plan", dataset, "-o", tmp_path / "run")
    assert code == 2
    assert path.name[:-7] in text
    assert "truncated" in text.lower() or "ends" in text.lower()
    assert not (tmp_path / "run" / "plan.json").exists()


def test_an_undeclared_label_names_value_count_and_place(call, dataset, tmp_path):
    path = _first(dataset, "labelsTr")
    image = nib.load(path)
    labels = np.asarray(image.dataobj).astype(np.uint8)
    labels[3, 4, 5] = 9
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), path)
    code, text = call("plan", dataset, "-o", tmp_path / "run")
    assert code == 2
    assert "label value 9 in 1 voxel" in text
    assert "(3, 4, 5)" in text


def test_image_and_label_of_different_shape(call, dataset, tmp_path):
    path = _first(dataset, "labelsTr")
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, :-1], image.affine), path)
    code, text = call("plan", dataset, "-o", tmp_path / "run")
    assert code == 2
    assert "differ in shape" in text
    assert path.name[:-7] in text


def test_all_problems_are_told_in_one_pass(call, dataset, tmp_path):
    first, second, *_ = sorted((dataset / "imagesTr").iterdir())
    first.write_bytes(first.read_bytes()[:-3000])
    second.unlink()
    code, text = call("plan", dataset, "-o", tmp_path / "run")
    assert code == 2
    assert first.name[:-7] in text
    assert second.name[:-7] in text


def test_an_unknown_network_is_answered_with_the_nearest_name(call, dataset, tmp_path):
    code, text = call("plan", dataset, "-o", tmp_path / "run", "--network", "vmunet")
    assert code == 2
    assert "Did you mean 'vm_unet'" in text


def test_an_output_folder_that_cannot_be_made(call, dataset, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, text = call("plan", dataset, "-o", tmp_path / "file" / "run")
    assert code == 4
    assert "Cannot write" in text
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_full_disk_ends_with_one_line_and_no_half_file(dataset, tmp_path):
    # A limit on file size makes every write beyond it fail as a full disk would; it holds for the child only.
    code = (
        "import resource, signal, sys; from medmamba.cli.main import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "run(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "plan", dataset, "-o", tmp_path / "run"], capture_output=True, text=True
    )
    assert result.returncode == 4
    assert "Traceback" not in result.stderr
    assert "Cannot write" in result.stderr
    assert not (tmp_path / "run" / "plan.json").exists()
    assert not list((tmp_path / "run").rglob("*.part"))


def test_training_what_was_never_planned(call, tmp_path):
    (tmp_path / "run").mkdir()
    code, text = call("train", tmp_path / "run")
    assert code == 2
    assert "plan.json" in text
    assert "medmamba plan" in text


def test_a_fold_that_does_not_exist(call, small_run):
    code, text = call("train", small_run, "--fold", "17", "--steps", "1")
    assert code == 2
    assert "Fold 17 does not exist" in text


def test_a_bad_option_is_one_line(call, small_run):
    code, text = call("train", small_run, "--optimizer", "adam")
    assert code == 2
    assert "--optimizer 'adam'" in text


@pytest.mark.parametrize("value", ["a\nb", "x" * 5000, "\udcff"])
@pytest.mark.parametrize(
    "arguments",
    [["info"], ["explain"], ["info", "vm_unet", "--dims"], ["info", "vm_unet", "--size"], ["plan", "-o", "r"]],
)
def test_whatever_a_value_holds_the_error_is_one_line_of_bounded_length(call, arguments, value):
    code, text = call(*arguments, value)
    assert code in (2, 4)  # a name that is too long for the file system
    assert len(text.splitlines()) == 1
    assert len(text) < 1100
    assert text.endswith(".")


def test_every_problem_of_several_is_a_line(call):
    code, text = call("info", "vm_unet", "--dims", "\n", "--size", "99999999999")
    assert code == 2
    assert [line.split()[1] for line in text.splitlines()] == ["--dims", "--size"]
    assert text.endswith("--size '99999999999' must be at most 1024.")


def test_two_budgets_of_time_are_not_one(call, small_run):
    code, error = call("train", small_run, "--max-minutes", "5", "--max-hours", "1")
    assert code == 2
    assert "--max-minutes and --max-hours" in error


def test_predicting_with_an_untrained_run(call, small_run, small_dataset, tmp_path):
    code, text = call("predict", small_run, small_dataset / "imagesTs", "-o", tmp_path / "masks", "--fold", "3")
    assert code == 2
    assert "not trained" in text or "no trained fold" in text


def test_an_edited_plan_is_refused_with_the_field(call, small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("models", "preprocessed")))
    plan = json.loads((run / "plan.json").read_text())
    plan["configurations"]["3d_fullres"]["patch_size"] = [16, "big", 16]
    (run / "plan.json").write_text(json.dumps(plan))
    code, text = call("explain", run)
    assert code == 2
    assert "configurations.3d_fullres.patch_size[1]" in text


@pytest.mark.parametrize(
    "words", [["plan", "", "-o", "run"], ["predict", "run", "images", "-o", ""], ["plan", "x", "--output="]]
)
def test_an_empty_argument_is_not_the_current_folder(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*words) == (2, "Error: An argument is empty. If it is a variable of the shell, it is not set.")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_told_with_its_cure(call, small_dataset, tmp_path):
    code, text = call("plan", small_dataset, "-o", tmp_path / ("x" * 300))
    assert code == 4
    assert text.endswith("xx: the name is too long for this file system. Use a shorter case name or folder.")
