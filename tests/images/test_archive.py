"""Zip archives cannot lead out of their folder, fill the disk, or hide what is wrong with them."""

from __future__ import annotations

import contextlib
import errno
import stat
import struct
import warnings
import zipfile

import numpy as np
import pytest

from medmamba.errors import InputError, ResourceError
from medmamba.images.archive import is_zip, unpack


def packed(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_files_keep_their_folders_and_additions_of_systems_are_left_out(tmp_path):
    path = packed(tmp_path / "a.zip", {"a/b": "1", "c": "2", "__MACOSX/x": "3", "a/.hidden": "5", "a/c": "4"})
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"a/b": "1", "c": "2", "a/c": "4"}
    assert is_zip(path)
    assert not is_zip(tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "..\\evil"])
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(InputError, match="a name outside of it"):
        unpack(tmp_path / "a.zip", tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_bombs_and_damage_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="holds a link"):
        unpack(tmp_path / "link.zip", tmp_path)
    bomb = packed(tmp_path / "bomb.zip", {"zeros": b"\0" * 5_000_000})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(InputError, match="unpacks to more than 1000000 bytes"):
        unpack(bomb, tmp_path / "b", largest_bytes=1_000_000)
    assert (tmp_path / "b" / "zeros").stat().st_size <= 3 << 20
    with pytest.raises(InputError, match="2 files, more than 1"):
        unpack(packed(tmp_path / "two.zip", {"a": "1", "b": "2"}), tmp_path, most_files=1)
    damaged = bytearray(packed(tmp_path / "d.zip", {"a": bytes(range(256)) * 40}).read_bytes())
    damaged[60] ^= 0xFF
    (tmp_path / "d.zip").write_bytes(damaged)
    with pytest.raises(InputError, match="damaged or unsupported zip"):
        unpack(tmp_path / "d.zip", tmp_path)


def _twice(path):
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("a", "1")
        archive.writestr("a", "2")


def _file_and_folder(path):
    packed(path, {"a": "1", "a/b": "2"})


def _long_name(path):
    packed(path, {"a" * 300: "1"})


def _changed(method, at, value):
    def write(path):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a", bytes(range(256)) * 40)
        raw = bytearray(path.read_bytes())
        start = raw.index(b"PK\1\2") if at < 0 else 0
        raw[start + abs(at) : start + abs(at) + len(value)] = value
        path.write_bytes(raw)

    return write


def _of_two_disks(path):
    packed(path, {"a": "1"})
    end = path.read_bytes()[-22:]
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 0, 2)
    path.write_bytes(path.read_bytes()[:-22] + locator + end)


@pytest.mark.parametrize(
    "write",
    [
        _twice,
        _file_and_folder,
        _long_name,
        _changed(zipfile.ZIP_BZIP2, 40, b"\xff" * 40),
        _changed(zipfile.ZIP_LZMA, 36, b"\xff" * 40),
        _changed(zipfile.ZIP_DEFLATED, 40, b"\xff" * 40),
        _changed(zipfile.ZIP_STORED, -10, b"\x63\0"),  # an unknown method
        _changed(zipfile.ZIP_STORED, -42, b"\xf0\xff\xff\xff"),  # an offset behind the end
        _changed(zipfile.ZIP_STORED, 26, b"\xff\xff"),  # another length of the name
        _of_two_disks,
    ],
)
def test_odd_zips_are_refused_in_one_line(write, tmp_path):
    write(tmp_path / "a.zip")
    assert is_zip(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"a damaged or unsupported zip archive \(.+\)") as caught:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "out") not in str(caught.value)


def test_a_full_disk_is_no_fault_of_the_zip(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medmamba.images.archive._copy", full)
    with pytest.raises(ResourceError, match="cannot be unpacked: No space left on device"):
        unpack(packed(tmp_path / "a.zip", {"a": "1"}), tmp_path / "out")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_a_zip_gives_files_or_one_line(seed, tmp_path):
    whole, rng = packed(tmp_path / "a.zip", {"a/b": "1" * 900, "c": "2"}).read_bytes(), np.random.default_rng(seed)
    for number in range(50):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            broken[at] = rng.integers(256)
        (tmp_path / "b.zip").write_bytes(broken)
        if is_zip(tmp_path / "b.zip"):
            with contextlib.suppress(InputError):
                unpack(tmp_path / "b.zip", tmp_path / str(number), largest_bytes=1 << 20)
