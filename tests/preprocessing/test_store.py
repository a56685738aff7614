"""Preprocessed cases on disk: a flipped bit is refused, and an array that could run code is not opened."""

from __future__ import annotations

import json
import random

import blosc2
import numpy as np
import pytest

from medmamba.errors import InputError
from medmamba.preprocessing import store
from medmamba.preprocessing.store import CaseReader, write_case

SHAPE = (20, 21, 22)


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    labels = (rng.random(SHAPE) > 0.9).astype(np.int16)
    write_case(tmp_path / "k", "k", image, labels, chunk=(8, 8, 8), nonzero_mask=labels > 0)
    return tmp_path / "k", image, labels


def read(folder):
    reader = CaseReader(folder)
    image, labels = reader.read_whole()
    mask = reader.read_body_patch((0, 0, 0), SHAPE)[0]
    return image, labels, mask, reader.locations[1]


@pytest.mark.parametrize("name", ["image.b2nd", "labels.b2nd", "body.b2nd", "locations.safetensors", "case.json"])
def test_a_flipped_bit_changes_nothing_or_is_refused(case, name):
    folder, *_ = case
    before, path, rng = read(folder), folder / name, random.Random(name)
    raw, refused = path.read_bytes(), 0
    for trial in range(60):
        changed = bytearray(raw)
        edge = rng.choice([rng.randrange(200), len(raw) - 1 - rng.randrange(200)])
        changed[(edge if trial % 2 else rng.randrange(len(raw))) % len(raw)] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            after = read(folder)
        except InputError:
            refused += 1
        else:
            for one, other in zip(before, after, strict=True):
                np.testing.assert_array_equal(one, other)
    assert refused > 40


@pytest.mark.parametrize("kind", [np.int16, np.float32])
@pytest.mark.parametrize("value", [0, 7])
def test_chunks_of_one_value_have_the_checksums_that_are_read_back(tmp_path, kind, value):
    array = np.zeros((40, 50, 36), kind)
    array[25:30, 20:30, 10:20] = value
    (tmp_path / "image.b2nd").write_bytes(store._compressed(array, (16, 16, 16)))
    np.testing.assert_array_equal(store._StoredArray(tmp_path / "image.b2nd")[:], array)


def test_a_patch_compares_the_chunks_that_it_touches(case):
    folder, image, _ = case
    reader = CaseReader(folder)
    array = reader._image
    reader.read_patch((-2, 0, 0), (4, 4, 4))
    assert set(range(array.array.schunk.nchunks)) - set(array._unread) == {0}
    patch, _ = reader.read_patch((10, 10, 10), (9, 9, 9))
    np.testing.assert_array_equal(patch, image[:, 10:19, 10:19, 10:19])


def test_a_damaged_chunk_is_refused_each_time_that_it_is_read(case):
    path = case[0] / "image.b2nd"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    reader = CaseReader(case[0])
    for _ in range(2):
        with pytest.raises(InputError, match="CRC-32"):
            reader.read_whole()


def test_cases_of_earlier_versions_have_no_checksums_and_are_read(case, monkeypatch):
    folder, image, labels = case
    for name, array in (("image", image), ("labels", labels)):
        (folder / f"{name}.b2nd").write_bytes(blosc2.asarray(array).to_cframe())
    facts = {"schema_version": 1, "case_id": "k", "shape": list(SHAPE)}
    (folder / "case.json").write_text(json.dumps(facts))
    found = read(folder)
    np.testing.assert_array_equal(found[0], image)


def run_me(inputs, output, offset):
    output[:] = 1


def test_an_array_that_computes_itself_is_not_opened(case, tmp_path, monkeypatch):
    folder, image, _ = case
    path = folder / "image.b2nd"
    path.unlink()
    operand = blosc2.asarray(image, urlpath=str(tmp_path / "operand.b2nd"), mode="w")
    blosc2.lazyudf(run_me, (operand,), np.float32, shape=image.shape).save(str(path))
    opened = []
    monkeypatch.setattr(store.blosc2, "open", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(InputError, match=r"image\.b2nd: not a plain blosc2 array"):
        CaseReader(folder).read_whole()
    assert opened == []


def test_an_array_of_another_shape_or_type_is_refused(case):
    folder, image, labels = case
    (folder / "image.b2nd").write_bytes(blosc2.asarray(image[:, :10]).to_cframe())
    with pytest.raises(InputError, match=r"float32 of shape \(2, 10, 21, 22\)"):
        CaseReader(folder).read_patch((0, 0, 0), (4, 4, 4))
    (folder / "labels.b2nd").write_bytes(blosc2.asarray(labels.astype(np.float64)).to_cframe())
    with pytest.raises(InputError, match="float64 of shape"):
        _ = CaseReader(folder)._labels
