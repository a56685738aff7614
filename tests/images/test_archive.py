"""Zip archives cannot lead out of their folder, fill the disk, or hide what is wrong with them."""

from __future__ import annotations

import stat
import zipfile

import pytest

from medmamba.errors import InputError
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
    with pytest.raises(InputError, match="damaged zip"):
        unpack(tmp_path / "d.zip", tmp_path)
