"""The table of pseudonyms: never replaced when it cannot be read, complete over runs, for the eyes of the owner."""

from __future__ import annotations

import os

import pytest

from medmamba.errors import InputError, ResourceError
from medmamba.inference.folder.pseudonyms import KEY_FILE, Pseudonyms


def written(folder, *cases):
    names = Pseudonyms.of_folder(folder)
    names.write_key(folder, cases)
    return names


def test_cases_of_earlier_runs_stay_in_the_table_under_their_names(tmp_path):
    first = written(tmp_path, "anna", '=b,"c"')
    second = written(tmp_path, "carl", "anna")
    assert first.salt == second.salt
    text = (tmp_path / KEY_FILE).read_text()
    for name in ("anna", "carl", '=b,"c"'):
        assert text.count(first.of(name)) == 1
    assert len(text.splitlines()) == 5


def test_a_table_that_is_complete_is_not_written_again(tmp_path, monkeypatch):
    names = written(tmp_path, "anna", "bert")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medmamba.disk.atomic.os.replace", full)
    assert written(tmp_path, "bert").salt == names.salt
    before = (tmp_path / KEY_FILE).read_bytes()
    with pytest.raises(ResourceError, match=r"Cannot write .*pseudonyms\.csv: the disk is full") as caught:
        written(tmp_path, "carl")
    assert "carl" not in str(caught.value)
    assert (tmp_path / KEY_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "the table of pseudonyms cannot be read: not utf-8"),
        (b"case,pseudonym\nanna,case-1\n", "not a table of pseudonyms as medmamba writes it"),
        (b"# salt 00ff,\n", "not a table of pseudonyms as medmamba writes it"),
        (None, "the table of pseudonyms cannot be read: is a directory"),
    ],
)
def test_a_table_that_cannot_be_read_is_left_alone(tmp_path, content, said):
    (tmp_path / KEY_FILE).mkdir() if content is None else (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(InputError) as caught:
        Pseudonyms.of_folder(tmp_path)
    end = "It names the cases of earlier reports: restore it, or move it away to begin a new one."
    assert str(caught.value) == f"{tmp_path / KEY_FILE}: {said}. {end}"
    assert content is None or (tmp_path / KEY_FILE).read_bytes() == content


def test_nobody_else_can_read_the_table_at_any_moment(tmp_path, monkeypatch):
    modes = []
    replace = os.replace

    def seen(source, target):
        modes.append(os.stat(source).st_mode & 0o777)
        replace(source, target)

    monkeypatch.setattr("medmamba.disk.atomic.os.replace", seen)
    before = os.umask(0)
    try:
        written(tmp_path, "anna")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
