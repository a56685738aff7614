"""Mutated descriptions, tables and split files of every layout: read, or refused with an error of ours."""

import json
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from medmamba.datasets import read_dataset
from medmamba.datasets.table import patients_of
from medmamba.errors import MedmambaError

MUTATIONS = 200
ODD = [
    b"",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"[",
    b"{}",
    b'"',
    b",",
    b";",
    b"\t",
    b"\n",
    b"\r",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
]
ODD += [
    b"true",
    b"../",
    b"/",
    b"..",
    b"a" * 300,
    b"9" * 5000,
    b"\\ud800",
    b"\\u0000",
    b"=",
    b"~",
    b"%",
    b".nii",
    b"\xef\xbb\xbf",
]
SHAPE = (3, 4, 5)


def mutated(text: bytes, draw: random.Random) -> bytes:
    """A few pieces taken out, doubled, exchanged or replaced by something odd."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice([0, 1, 1, 3, 12]))
        piece = draw.choice([b"", text[start:end] * 2, *draw.sample(ODD, 3)])
        text = text[:start] + piece + text[end:]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two cases whose files exist, described in each layout."""
    home = tmp_path_factory.mktemp("mutated")
    for name in ("imagesTr/a", "imagesTr/b", "imagesTr/a_0000", "imagesTr/b_0000", "labelsTr/a", "labelsTr/b"):
        path = home / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(np.zeros(SHAPE).tobytes())
    return home


def entries() -> list[dict[str, object]]:
    return [
        {
            "image": f"imagesTr/{n}.nii.gz",
            "label": f"./labelsTr/{n}.nii.gz",
            "patient": 3 + k,
            "annotated": ["organ"],
        }
        for k, n in enumerate("ab")
    ]


NAMES = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}, "numTraining": 2}
NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": [1, 2], "core": 2},
    "file_ending": ".nii.gz",
}
NNUNET |= {"regions_class_order": [1, 2], "numTraining": 2}
FILES = {
    "decathlon": {"dataset.json": NAMES | {"training": entries(), "test": ["imagesTr/c.nii.gz"]}},
    "nnunet": {"dataset.json": NNUNET},
    "listed": {
        "dataset.json": NNUNET
        | {"dataset": {n: {"images": [f"imagesTr/{n}.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in "ab"}}
    },
    "table": {"dataset.json": NAMES | {"cases": "cases.csv"}},
}
ROWS = [f"{name},imagesTr/{name}.nii.gz,labelsTr/{name}.nii.gz,p{name},train" for name in "ab"]
TABLE = "\n".join(["case_id,image,label,patient,split", *ROWS, ""])
SPLITS = [{"train": ["a"], "val": ["b"]}]


@pytest.mark.parametrize("layout", FILES)
def test_mutated_files_are_read_or_refused(folder, layout):
    texts = {name: json.dumps(value).encode() for name, value in FILES[layout].items()}
    texts |= {"cases.csv": TABLE.encode(), "splits_final.json": json.dumps(SPLITS).encode()}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    (folder / "splits_final.json").unlink()
    read_dataset(folder)  # as it stands
    read = 0
    for number in range(MUTATIONS):
        draw = random.Random(f"{layout} {number}")
        changed = draw.choice(
            ["dataset.json", "dataset.json", *(["cases.csv"] * 2 if layout == "table" else []), "splits_final.json"]
        )
        for name, text in texts.items():
            (folder / name).write_bytes(mutated(text, draw) if name == changed else text)
        with suppress(MedmambaError):
            spec = read_dataset(folder)
            patients_of(spec)
            patients_of(spec, f"{folder}/cases.csv:patient")
            read += 1
    assert 0 < read < MUTATIONS
