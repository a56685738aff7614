"""Whatever write fails, and whenever: one line, no mask, no leftover; and a wrong mask never gets its name."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from medmamba.disk import atomic
from medmamba.errors import ResourceError
from medmamba.geometry import Grid, affine_from
from medmamba.images import (
    format_of,
    known_endings,
    mask_ending,
    read_image,
    read_label_map,
    write_image,
    write_label_map,
)
from medmamba.images.formats import FORMATS

VOLUME = Grid((6, 5, 4), affine_from((1, 2, 3)))
FLAT = Grid((6, 5, 1))


def a_mask(ending: str) -> tuple[np.ndarray, Grid]:
    grid = FLAT if format_of("image" + ending).flat else VOLUME
    return np.random.default_rng(0).integers(0, 3, grid.shape), grid


class Failing:
    """A file whose n-th write fails as on a full disk."""

    def __init__(self, file, counter: list[int], fail_at: int) -> None:
        self.file, self.counter, self.fail_at = file, counter, fail_at

    def write(self, data: bytes) -> int:
        self.counter[0] += 1
        if self.counter[0] == self.fail_at:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()


@pytest.mark.parametrize("ending", sorted({mask_ending("x" + e) for e in known_endings()}))
def test_the_disk_may_be_full_at_any_write(tmp_path, monkeypatch, ending):
    labels, grid = a_mask(ending)
    path = tmp_path / f"mask{ending}"
    for fail_at in range(1, 50):
        counter = [0]

        def failing_open(part, mode, counter=counter, fail_at=fail_at, **options):
            return Failing(open(part, mode, **options), counter, fail_at)

        monkeypatch.setattr(atomic, "open", failing_open, raising=False)
        message = ""
        try:
            write_label_map(path, labels, like=grid)
        except ResourceError as error:
            message = str(error)
        if not message:
            break
        assert "the disk is full" in message
        assert list(tmp_path.iterdir()) == []
    assert fail_at > 1
    monkeypatch.undo()
    np.testing.assert_array_equal(read_label_map(path).array, labels)


@pytest.mark.parametrize("ending", known_endings())
def test_every_registered_kind_takes_a_mask_or_names_the_kind_that_does(tmp_path, ending):
    path = tmp_path / f"mask{mask_ending('case' + ending)}"
    labels, grid = a_mask(ending)
    write_label_map(path, labels, like=grid)
    again = read_label_map(path)
    np.testing.assert_array_equal(again.array, labels)
    assert again.grid.shape == grid.shape
    assert read_image(path).array.shape == (1, *grid.shape)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_every_registered_kind_reads_and_writes_images_and_labels(kind):
    module = kind.load()
    assert all(callable(getattr(module, name)) for name in ("read", "write", "same_place"))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".hdr", ".nrrd", ".mha", ".mhd", ".png"])
@pytest.mark.parametrize("writer", [write_label_map, write_image])
def test_a_disk_that_lies_is_noticed_before_the_mask_gets_its_name(tmp_path, monkeypatch, ending, writer):
    labels, grid = a_mask(ending)
    real = os.fsync

    def damage(descriptor: int) -> None:
        """Turns one bit near the end of what was written, as a bad disk does."""
        if os.fstat(descriptor).st_size > 20:
            name = Path(f"/proc/self/fd/{descriptor}").resolve()
            raw = bytearray(name.read_bytes())
            raw[-14 if ending == ".png" else -3] ^= 1
            name.write_bytes(raw)
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("looks up open files in /proc")
    monkeypatch.setattr(atomic.os, "fsync", damage)
    from medmamba.errors import MedmambaError

    values = labels if writer is write_label_map else labels[None].astype(np.uint8)
    with pytest.raises(MedmambaError):
        writer(tmp_path / f"m{ending}", values, like=grid)
    assert list(tmp_path.iterdir()) == []
