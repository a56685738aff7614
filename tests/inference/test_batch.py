"""A folder of images: no case lost, no stale mask, interrupted runs go on, and every mask can be made again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmamba import pipeline
from medmamba.cli.main import run as medmamba
from medmamba.disk.lock import FolderLock
from medmamba.errors import ConfigError, InputError, ResourceError
from medmamba.images.cases import find_cases, part_of
from medmamba.inference.folder.page import write_page
from medmamba.inference.folder.run import predict_folder, reproduce
from medmamba.inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor(tiny_run, folds=[0], mirror=False)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        save(folder / f"patient_{number}.nii.gz", number)
    return folder


def save(path, seed):
    pixels = np.random.default_rng(seed).normal(200, 60, (18, 22, 17)).astype(np.float32)
    nib.save(nib.Nifti1Image(pixels, np.diag([1.0, 1.0, 1.0, 1.0])), path)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_every_case_has_a_mask_and_a_record(predictor, images, tmp_path):
    pipeline.predict(predictor, images, tmp_path / "out")
    report = report_of(tmp_path / "out")
    assert report["summary"] == {"cases": 3, "done": 3, "failed": 0, "waiting": 0, "incomplete": 0}
    record = report["cases"]["patient_1"]
    for key in ("input_sha256", "mask_sha256", "image_sha256", "geometry", "voxels", "volume_ml", "seconds", "status"):
        assert key in record
    assert set(report["model"]["weights_sha256"]["3d_fullres"]) == {"fold_0"}
    assert "images" not in json.dumps(report).replace("images'", "")  # no input path


def test_a_poisoned_case_is_named_its_old_mask_is_gone_and_the_others_are_done(predictor, images, tmp_path):
    out = tmp_path / "out"
    pipeline.predict(predictor, images, out)
    broken = images / "patient_1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-400])
    report = pipeline.predict(predictor, images, out)
    assert set(report.failed) == {"patient_1"}
    assert "cut off" in report.failed["patient_1"]
    assert set(bytes_of(out)) == {"patient_0.nii.gz", "patient_2.nii.gz"}
    assert report_of(out)["summary"]["failed"] == 1


def test_the_command_tells_partial_from_total_failure(tiny_run, images, tmp_path, capsys):
    def code(folder):
        arguments = ["predict", tiny_run, folder, "-o", tmp_path / "out", "--fold", "0", "--no-mirror"]
        with pytest.raises(SystemExit) as stop:
            medmamba([str(argument) for argument in arguments])
        return stop.value.code

    assert code(images) == 0
    (images / "patient_1.nii.gz").write_bytes(b"nothing")
    assert code(images) == 1
    assert "2 ok, 1 failed: patient_1" in capsys.readouterr().err
    for path in images.iterdir():
        path.write_bytes(b"nothing")
    assert code(images) == 2


def test_an_interrupted_folder_goes_on_and_redoes_nothing_that_is_whole(predictor, images, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    pipeline.predict(predictor, images, whole)
    calls = []
    straight = predictor.predict

    def stops_at_the_third(image, **choices):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return straight(image, **choices)

    monkeypatch.setattr(predictor, "predict", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        pipeline.predict(predictor, images, out)
    assert len(bytes_of(out)) == 2
    (out / "patient_0.nii.gz").write_bytes(b"half a mask")  # not what the record says
    calls.append("never stop")
    with pytest.raises(InputError, match=r"patient_0\.nii\.gz: not written by medmamba, or changed since"):
        pipeline.predict(predictor, images, out, resume=True)
    report = pipeline.predict(predictor, images, out, resume=True, overwrite=True)
    assert report.resumed == ["patient_1"]
    assert bytes_of(out) == bytes_of(whole)


def test_resume_does_not_trust_masks_of_other_settings(tiny_run, predictor, images, tmp_path):
    pipeline.predict(predictor, images, tmp_path / "out")
    other = Predictor(tiny_run, folds=[1], mirror=False)
    assert pipeline.predict(other, images, tmp_path / "out", resume=True).resumed == []


@pytest.mark.parametrize("product", ["probabilities", "uncertainty"])
def test_a_case_named_as_a_product_of_another_is_refused_before_anything_is_predicted(
    predictor, images, tmp_path, product
):
    save(images / f"patient_1_{product}.nii.gz", 5)
    out = tmp_path / "out"
    line = f"patient_1 and patient_1_{product}: both would write patient_1_{product}.nii.gz. Rename one of the images."
    with pytest.raises(InputError, match=f"^{line}$"):
        pipeline.predict(predictor, images, out, **{product: True})
    assert not out.exists()
    assert len(pipeline.predict(predictor, images, out).done) == 4  # where there is no such product


@pytest.mark.parametrize("product", ["probabilities", "uncertainty"])
def test_resume_makes_a_product_that_is_missing(predictor, images, tmp_path, product):
    out = tmp_path / "out"
    pipeline.predict(predictor, images, out, **{product: True})
    (lost := out / f"patient_1_{product}.nii.gz").unlink()
    again = pipeline.predict(predictor, images, out, resume=True, **{product: True})
    assert again.resumed == ["patient_0", "patient_2"]
    assert lost.is_file()


def test_the_viewer_shows_maps_of_uncertainty_that_are_ours_and_on_the_grid_of_their_masks(predictor, images, tmp_path):
    out = tmp_path / "out"
    report = pipeline.predict(predictor, images, out, uncertainty=True)
    records = {name: record.as_dict() for name, record in report.done.items()}
    labels, files = {"background": 0, "Anterior": 1}, {case.case_id: case for case in find_cases(images)}

    def shown(ours):
        write_page(out, records, files, labels, lambda path: ours)
        return (out / "report.html").read_text().count('data-case="')

    assert [shown(True), shown(False)] == [3, 0]
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), out / "patient_0_uncertainty.nii.gz")
    assert shown(True) == 2


def test_killed_between_the_mask_and_its_record_the_case_is_done_again(tiny_run, images, tmp_path):
    command = "from medmamba.cli.main import run; import sys; run(sys.argv[1:])"
    out = tmp_path / "out"
    arguments = ["predict", tiny_run, images, "-o", out, "--fold", "0", "--no-mirror"]
    environment = {**os.environ, "MEDMAMBA_CRASH_AT": "replace:1", "OMP_NUM_THREADS": "1"}  # after the first mask
    call = [sys.executable, "-c", command, *map(str, arguments)]
    killed = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()
    predictor = Predictor(tiny_run, folds=[0], mirror=False)
    report = pipeline.predict(predictor, images, out, resume=True)
    assert report.resumed == []
    assert len(bytes_of(out)) == 3


def test_parts_are_disjoint_complete_and_one_report(predictor, images, tmp_path):
    out = tmp_path / "out"
    cases = find_cases(images)
    ids = [{case.case_id for case in part_of(cases, (number, 2))} for number in (1, 2)]
    assert ids[0].isdisjoint(ids[1])
    assert len(ids[0] | ids[1]) == 3
    pipeline.predict(predictor, images, out, part=(1, 2))
    assert report_of(out)["summary"] == {"cases": 3, "done": 2, "failed": 0, "waiting": 1, "incomplete": 0}
    pipeline.predict(predictor, images, out, part=(2, 2))
    assert report_of(out)["summary"]["done"] == 3


def test_two_runs_on_one_folder_are_refused(predictor, images, tmp_path):
    pipeline.predict(predictor, images, tmp_path / "out")
    before = bytes_of(tmp_path / "out")
    with FolderLock(tmp_path / "out"), pytest.raises(InputError, match="in use by process"):
        pipeline.predict(predictor, images, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == before


def test_parts_may_run_beside_each_other_but_not_beside_the_whole(predictor, images, tmp_path):
    out = tmp_path / "out"
    with FolderLock(out, shared=True):  # as a part holds it
        pipeline.predict(predictor, images, out, part=(1, 2))
        with pytest.raises(InputError, match="in use by process"):
            pipeline.predict(predictor, images, out)
    with FolderLock(out / ".part-2-of-2"), pytest.raises(InputError, match="in use by process"):
        pipeline.predict(predictor, images, out, part=(2, 2))
    with FolderLock(out), pytest.raises(InputError, match="in use by process"):
        pipeline.predict(predictor, images, out, part=(2, 2))


def test_parts_that_end_together_leave_one_whole_report(predictor, images, tmp_path):
    out = tmp_path / "out"
    parts = [
        threading.Thread(target=pipeline.predict, args=(predictor, images, out), kwargs={"part": (number, 3)})
        for number in (1, 2, 3)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert report_of(out)["summary"] == {"cases": 3, "done": 3, "failed": 0, "waiting": 0, "incomplete": 0}


def test_torchrun_gives_every_process_its_part(predictor, images, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = {}
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        done[rank] = set(predict_folder(predictor, images, tmp_path / "out").done)
    assert done == {0: {"patient_0", "patient_2"}, 1: {"patient_1"}}


def test_voxels_beside_a_header_are_part_of_input_and_mask(predictor, tmp_path):
    import SimpleITK as sitk

    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(200, 60, (17, 22, 18)).astype(np.float32))
    sitk.WriteImage(image, str(source / "a.mhd"))
    pipeline.predict(predictor, source, out)
    assert len(report_of(out)["cases"]["a"]["mask_sha256"]) == 2
    assert pipeline.predict(predictor, source, out, resume=True).resumed == ["a"]
    voxels = source / "a.raw"
    voxels.write_bytes(voxels.read_bytes()[::-1])
    assert pipeline.predict(predictor, source, out, resume=True).resumed == []
    voxels.unlink()
    report = pipeline.predict(predictor, source, out)
    assert "its voxel file" in report.failed["a"]
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {"report.json", "reports"}


def test_a_full_disk_ends_with_one_line_and_no_half_file(predictor, images, tmp_path, monkeypatch):
    import errno

    from medmamba.disk import atomic

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        pipeline.predict(predictor, images, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_fault_of_our_own_costs_its_case_and_no_other(predictor, images, tmp_path, monkeypatch):
    straight = predictor.predict

    def breaks(image, **choices):
        if image.path.name == "patient_1.nii.gz":
            raise IndexError("list index out of range")
        return straight(image, **choices)

    monkeypatch.setattr(predictor, "predict", breaks)
    report = pipeline.predict(predictor, images, tmp_path / "out")
    assert sorted(report.done) == ["patient_0", "patient_2"]
    assert "unexpected IndexError at test_batch.py" in report.failed["patient_1"]


def test_out_of_memory_is_tried_again_with_planes_on_disk(predictor, images, tmp_path, monkeypatch):
    straight, lines = predictor.predict, []

    def short(image, **choices):
        if not choices.get("planes_on_disk"):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return straight(image, **choices)

    monkeypatch.setattr(predictor, "predict", short)
    report = pipeline.predict(predictor, images, tmp_path / "out", on_message=lines.append)
    assert not report.failed
    assert any("planes on disk" in line for line in lines)


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/self/mounts").exists(), reason="needs a place nobody writes to"
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_predicted(predictor, images):
    place = Path("/proc/medmamba")  # not even root can make a folder there
    with pytest.raises(ResourceError, match=r"/proc/medmamba"):
        pipeline.predict(predictor, images, place)


def test_the_output_may_not_be_the_input(predictor, images):
    with pytest.raises(InputError, match="same folder"):
        pipeline.predict(predictor, images, images)


def test_pseudonyms_keep_names_out_of_reports_and_messages(predictor, images, tmp_path):
    (images / "patient_2.nii.gz").write_bytes(b"nothing")
    lines = []
    out = tmp_path / "out"
    pipeline.predict(predictor, images, out, pseudonymise=True, on_message=lines.append)
    told = (out / "report.json").read_text() + "".join(p.read_text() for p in (out / "reports").iterdir())
    for text in (told, "\n".join(lines)):
        assert "patient" not in text
        assert str(tmp_path) not in text
    key = (out / "pseudonyms.csv").read_text()
    assert "patient_0,case-" in key
    assert (out / "pseudonyms.csv").stat().st_mode & 0o077 == 0
    before = list(report_of(out)["cases"])
    pipeline.predict(predictor, images, out, pseudonymise=True)
    assert list(report_of(out)["cases"]) == before  # the same salt: the same names


def test_the_command_names_a_case_for_review_and_a_failed_one_by_their_pseudonyms_if_asked(
    tiny_run, images, tmp_path, capsys
):
    (images / "patient_2.nii.gz").write_bytes(b"nothing")
    arguments = ["predict", tiny_run, images, "-o", tmp_path / "out", "--fold", "0", "--no-mirror", "--json"]
    for choice in ([], ["--pseudonymise"]):
        with pytest.raises(SystemExit) as stop:
            medmamba([str(argument) for argument in [*arguments, *choice]])
        assert stop.value.code == 1
        told = capsys.readouterr()
        name = "case-" if choice else "patient_0"
        assert f"{name}" in told.err.split(": review: ")[0]
        assert ("patient" in told.out + told.err) == (not choice)


def test_a_report_can_be_reproduced_byte_by_byte(tiny_run, predictor, images, tmp_path):
    pipeline.predict(predictor, images, tmp_path / "out")
    found = reproduce(tmp_path / "out" / "report.json", tiny_run, images, cases=["patient_0", "patient_2"])
    assert found.same == ("patient_0", "patient_2")
    assert found.other == ()
    save(images / "patient_0.nii.gz", 99)
    with pytest.raises(InputError, match="patient_0: the image is not the one of the report"):
        reproduce(tmp_path / "out" / "report.json", tiny_run, images)
    record = report_of(tmp_path / "out")
    record["model"]["recipe_sha256"] = "of another find-best"
    (tmp_path / "out" / "report.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"its best\.json, which find-best writes, is not that of"):
        reproduce(tmp_path / "out" / "report.json", tiny_run, images)


def test_one_predictor_serves_several_threads(predictor, images):
    paths = sorted(images.iterdir())
    alone = [predictor.predict(path).labels for path in paths]
    together: dict[int, np.ndarray] = {}

    def work(number):
        together[number] = predictor.predict(paths[number]).labels

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[number], together[number]) for number in range(3))


def test_a_dicom_folder_is_a_case_and_its_mask_a_nifti(predictor, tmp_path, shared_data):
    series = shared_data / "hippocampus_dicom" / "series_a"
    if not series.is_dir():
        pytest.skip("the DICOM series is not in the development data")
    shutil.copytree(series, tmp_path / "in" / "series_a")
    report = pipeline.predict(predictor, tmp_path / "in", tmp_path / "out")
    assert list(report.done) == ["series_a"]
    assert (tmp_path / "out" / "series_a.nii.gz").exists()


def test_a_report_of_an_earlier_version_whose_plans_had_fewer_fields_is_reproduced(tiny_run, images, tmp_path):
    fold = shutil.copytree(tiny_run / "models" / "3d_fullres" / "fold_0", tmp_path / "fold_0")
    plan = json.loads((fold / "plan.json").read_text())
    del plan["options"]["train_hours"]
    (fold / "plan.json").write_text(json.dumps(plan, indent=2))
    before = sha256((fold / "plan.json").read_bytes()).hexdigest()
    facts = json.loads((fold / "model.json").read_text())
    (fold / "model.json").write_text(json.dumps(facts | {"plan_sha256": before}))
    pipeline.predict(fold, images, tmp_path / "out", mirror=False)
    record = report_of(tmp_path / "out")
    record["model"]["plan_sha256"] = before
    (tmp_path / "out" / "report.json").write_text(json.dumps(record))
    assert reproduce(tmp_path / "out" / "report.json", fold, images, cases=["patient_0"]).same == ("patient_0",)
