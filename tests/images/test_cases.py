"""The cases of a folder: a number at the end of a name is a channel only for models with a file per channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series

from medmamba.bundle.runtime.cases import image_list
from medmamba.errors import InputError
from medmamba.images.cases import find_cases, numbers_in_names


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


NUMBERED = [f"img_{n:04d}.png" for n in range(10)]


@pytest.mark.parametrize(
    ("names", "channel_files", "cases"),
    [
        (NUMBERED, 0, {f"img_{n:04d}": 1 for n in range(10)}),
        (NUMBERED, 1, {f"img_{n:04d}": 1 for n in range(10)}),
        (NUMBERED[3:4], 1, {"img_0003": 1}),
        (["a_0000.nii.gz", "b_0000.nii.gz", "scan_0003.nii.gz"], 1, {"a": 1, "b": 1, "scan_0003": 1}),
        (["a_0000.nii.gz", "b_0000.nii.gz"], 0, {"a_0000": 1, "b_0000": 1}),
        (["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz"], 2, {"a": 2, "b": 1}),
        (["a.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"], 2, {"a": 1, "b": 2}),
        (["amos_0008.nii.gz", "amos_0009.nii.gz"], 0, {"amos_0008": 1, "amos_0009": 1}),
    ],
)
def test_numbers_are_channels_only_where_channels_have_files(tmp_path, names, channel_files, cases):
    found = {case.case_id: len(case.paths) for case in find_cases(files(tmp_path, *names), channel_files)}
    assert found == cases
    listed = [entry["image"] for entry in image_list(str(tmp_path), channel_files)]
    assert [1 if isinstance(images, str) else len(images) for images in listed] == [
        cases[name] for name in sorted(cases)
    ]


@pytest.mark.parametrize(
    ("names", "channel_files"),
    [
        (["a.nii.gz", "a.nrrd"], 0),
        (["a.nii.gz", "a_0000.nii.gz"], 1),
        (["a_0000.nii.gz", "a_0000.nrrd"], 2),
        (["p/x.nii.gz", "p/x.nrrd", "q/x.nii.gz"], 0),
    ],
)
def test_two_files_for_one_case_are_an_error(tmp_path, names, channel_files):
    with pytest.raises(InputError, match="are the same image"):
        find_cases(files(tmp_path, *names), channel_files)


def test_a_missing_channel_is_named(tmp_path):
    with pytest.raises(InputError, match="a: channel 0 is missing"):
        find_cases(files(tmp_path, "a_0001.nii.gz"), 2)


def test_cases_in_folders_of_their_own_are_named_after_what_tells_them_apart(tmp_path):
    folder = files(tmp_path / "k", *(f"case_{n}/imaging.nii.gz" for n in range(3)))
    assert [case.case_id for case in find_cases(folder)] == ["case_0", "case_1", "case_2"]
    assert find_cases(folder)[1].output_name == "case_1.nii.gz"
    deep = files(tmp_path / "d", *(f"p{n}/visit{v}/t1.nii.gz" for n in range(2) for v in range(2)))
    assert [case.case_id for case in find_cases(deep)] == ["p0_visit0", "p0_visit1", "p1_visit0", "p1_visit1"]
    channels = files(tmp_path / "c", *(f"p{n}/mr_{c:04d}.nii.gz" for n in range(2) for c in range(2)))
    assert {case.case_id: len(case.paths) for case in find_cases(channels, 2)} == {"p0_mr": 2, "p1_mr": 2}
    own = files(tmp_path / "o", *(f"p{n}/p{n}.nii.gz" for n in range(2)))
    assert [case.case_id for case in find_cases(own)] == ["p0", "p1"]


def test_folders_that_hold_several_images_are_refused(tmp_path):
    names = [f"case_{n}/{what}.nii.gz" for n in range(2) for what in ("imaging", "segmentation")]
    with pytest.raises(InputError, match="2 images in one of several folders"):
        find_cases(files(tmp_path, *names))


def test_a_folder_of_slices_keeps_the_number_of_its_series(tmp_path):
    write_series(tmp_path / "study" / "T1_MPRAGE_SAG_0003", np.zeros((3, 4, 5), np.int16))
    for source in (tmp_path / "study", tmp_path / "study" / "T1_MPRAGE_SAG_0003"):
        for channel_files in (0, 1, 4):
            (case,) = find_cases(source, channel_files)
            assert case.output_name == "T1_MPRAGE_SAG_0003.nii.gz"


def test_dicom_folders_beside_deep_images_are_named(tmp_path, save):
    save("in/case_1/imaging.nii.gz", np.zeros((2, 3, 4)))
    write_series(tmp_path / "in" / "case_1" / "dicom", np.zeros((3, 4, 5), np.int16))
    lines = []
    assert [case.case_id for case in find_cases(tmp_path / "in", on_message=lines.append)] == ["imaging"]
    assert any(line.endswith("ignored: 1 DICOM folder (case_1/dicom).") for line in lines)


def test_numbers_that_are_no_channels_of_the_model_are_said(tmp_path):
    for name in ("p_0000", "p_0001", "q_0000"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    cases = find_cases(tmp_path, 1)
    assert [case.case_id for case in cases] == ["p_0000", "p_0001", "q"]
    assert numbers_in_names(cases, 1) == (
        "p_0000, p_0001: 2 images with a number, taken as cases of their own and not as channels, because a case of "
        "this model has one file."
    )
    assert numbers_in_names(find_cases(tmp_path, 0), 0) == ""
    cases = find_cases(tmp_path, 2)
    assert [case.case_id for case in cases] == ["p", "q"]
    assert numbers_in_names(cases, 2) == ""


def test_a_segmentation_of_slicer_has_the_name_of_its_image(tmp_path):
    (tmp_path / "a.seg.nrrd").write_bytes(b"x")
    (case,) = find_cases(tmp_path)
    assert (case.case_id, case.output_name) == ("a", "a.seg.nrrd")
    (tmp_path / "a.nrrd").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a: a\.nrrd and a\.seg\.nrrd are the same image\. Remove one of them\."):
        find_cases(tmp_path)
