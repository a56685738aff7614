"""The record that proves which files of an output folder medmamba wrote."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmamba.disk.atomic import write_bytes, write_pair
from medmamba.disk.own_files import RECORD, OwnFiles, refuse_dataset_folder, refuse_existing
from medmamba.errors import InputError


def records(folder):
    return [path for path in folder.iterdir() if path.name.startswith(RECORD)]


def test_what_was_written_is_ours_until_it_is_changed(tmp_path):
    own = OwnFiles(tmp_path)
    with own.recording():
        write_bytes(tmp_path / "sub" / "mask.nii", b"mask")
        write_pair(tmp_path / "a.mhd", b"head", tmp_path / "a.raw", lambda file: file.write(b"data"))
    write_bytes(tmp_path / "other", b"outside of the block")
    names = ["sub/mask.nii", "a.mhd", "a.raw", "other"]
    assert [own.owns(tmp_path / name) for name in names] == [True, True, True, False]
    own.refuse_foreign([tmp_path / "sub" / "mask.nii", tmp_path / "absent"])
    (tmp_path / "sub" / "mask.nii").write_bytes(b"corrected by hand")
    with pytest.raises(InputError, match=r"sub/mask\.nii: not written by medmamba, or changed since\. Give another "):
        own.refuse_foreign([tmp_path / "sub" / "mask.nii"])
    with pytest.raises(InputError, match=r"other \(and 1 more\): not written by medmamba"):
        own.refuse_foreign(tmp_path / name for name in names)
    OwnFiles(tmp_path, overwrite=True).refuse_foreign(tmp_path / name for name in names)
    own.remove(tmp_path / name for name in [*names, "absent"])
    assert [(tmp_path / name).exists() for name in names] == [True, False, False, True]


def test_the_record_is_a_list_of_sums_and_the_same_file_stands_in_it_once(tmp_path):
    for data in (b"one", b"one", b"two"):
        with OwnFiles(tmp_path).recording():
            write_bytes(tmp_path / "page.html", data)
    (record,) = records(tmp_path)
    sums = [f'{hashlib.sha256(data).hexdigest()} "page.html"' for data in (b"one", b"two")]
    assert record.read_text().splitlines() == ["", sums[0], "", sums[1]] or record.read_text().split("\n")[1:] == sums


def test_a_process_killed_before_or_after_the_new_name_leaves_a_file_of_ours(tmp_path):
    own, path = OwnFiles(tmp_path), tmp_path / "mask"
    with own.recording():
        write_bytes(path, b"old")
    for point in ("verify", "replace"):
        if (child := os.fork()) == 0:
            os.environ["MEDMAMBA_CRASH_AT"] = f"{point}:1"
            from medmamba.disk import atomic

            atomic._passed.clear()
            with own.recording():
                write_bytes(path, b"new")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        assert own.owns(path)
    assert path.read_bytes() == b"new"


def test_a_line_cut_short_spoils_no_other(tmp_path):
    own = OwnFiles(tmp_path)
    with own.recording():
        write_bytes(tmp_path / "a", b"a")
        (record,) = records(tmp_path)
        record.write_bytes(record.read_bytes() + b'\n0123 "b')
        write_bytes(tmp_path / "c", b"c")
    assert own.owns(tmp_path / "a")
    assert own.owns(tmp_path / "c")


@given(record=st.binary(max_size=200), name=st.sampled_from(["a", "ü\n", "b\udcff"]))
def test_a_damaged_record_proves_nothing_and_stops_nothing(tmp_path_factory, record, name):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / f"{RECORD}0000").write_bytes(record)
    assert not OwnFiles(folder).owns(folder / name)
    with OwnFiles(folder).recording():
        write_bytes(folder / name, b"x")
    assert OwnFiles(folder).owns(folder / name)


def test_a_link_is_never_ours(tmp_path):
    with OwnFiles(tmp_path).recording():
        write_bytes(tmp_path / "mask", b"mask")
    (tmp_path / "mask").rename(tmp_path / "elsewhere")
    (tmp_path / "mask").symlink_to("elsewhere")
    assert not OwnFiles(tmp_path).owns(tmp_path / "mask")
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(InputError, match="broken: not written by medmamba"):
        OwnFiles(tmp_path).refuse_foreign([tmp_path / "broken"])


def test_records_of_all_machines_count(tmp_path, monkeypatch):
    for machine in ("0001", "0002"):
        monkeypatch.setattr("medmamba.disk.own_files.this_machine", lambda machine=machine: machine)
        with OwnFiles(tmp_path).recording():
            write_bytes(tmp_path / machine, b"x")
    assert sorted(path.name for path in records(tmp_path)) == [f"{RECORD}0001", f"{RECORD}0002"]
    assert all(OwnFiles(tmp_path).owns(tmp_path / machine) for machine in ("0001", "0002"))


@pytest.mark.parametrize("name", ["imagesTr", "labelsTr", "labelsTr/new", "imagesTs"])
def test_an_output_does_not_go_into_the_folders_of_a_dataset(tmp_path, name):
    refuse_dataset_folder(tmp_path / name)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=rf"{name}: a folder of the dataset {tmp_path}\. Give another output folder\."):
        refuse_dataset_folder(tmp_path / name)
    refuse_dataset_folder(tmp_path / "predictions")


def test_a_single_file_that_exists_is_replaced_on_request_only(tmp_path):
    refuse_existing(tmp_path / "new")
    (tmp_path / "old").write_text("mine")
    refuse_existing(tmp_path / "old", overwrite=True)
    with pytest.raises(InputError, match=r"old: exists already\. Give the name of a new file, or use --overwrite"):
        refuse_existing(tmp_path / "old")
