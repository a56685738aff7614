"""Damaged and hostile bodies: one line with a status of 4xx, never an error of the service."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tempfile
import zipfile
import zlib

import numpy as np
import pytest
from dicom_series import write_series
from http_service import form, volume

from medmamba.inference.predictor import Predictor
from medmamba.serving.limits import ServiceLimits

COUNT = 200
FOR_THE_COMMAND_LINE = re.compile(
    rf"--[a-z]|medmamba |{re.escape(tempfile.gettempdir())}|Traceback|nonfinite|max_voxels|weights_only"
)


@pytest.fixture(scope="module")
def service(tiny_run, running):
    own = Predictor(tiny_run, folds=[0], mirror=False, device="cpu")
    return running(own, ServiceLimits(upload_bytes=2_000_000, unpacked_bytes=4_000_000))


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """A small image, and zips of it and of a series."""
    folder = tmp_path_factory.mktemp("bodies")
    image = volume(folder / "a.nii.gz", shape=(9, 10, 8)).read_bytes()
    series = write_series(folder / "s", np.random.default_rng(0).integers(0, 900, (4, 9, 10)).astype(np.int16))
    zips = []
    for files in ({"a.nii.gz": image}, {path.name: path.read_bytes() for path in series.iterdir()}):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        zips.append(packed.getvalue())
    return image, zips


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut, doubled or exchanged at places drawn at random."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place, length = draw.randrange(len(data)), draw.choice((1, 2, 4, 16))
        kind = draw.randrange(5)
        if kind == 0:
            data[place] = draw.randrange(256)
        elif kind == 1:
            data[place : place + length] = bytes(draw.randrange(256) for _ in range(length))
        elif kind == 2 and len(data) > 30:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        else:
            data[place : place + length] = draw.choice((b"\0" * length, b"\xff" * length))
    return bytes(data)


def check(service, path, body, **headers):
    """One line with a status of 4xx, or an answer."""
    code, answer = service.call(path, body, **headers)
    assert code == 200 or 400 <= code < 500, (code, answer[:300])
    if code != 200:
        reason = json.loads(answer)["error"]
        assert "\n" not in reason
        assert not FOR_THE_COMMAND_LINE.search(reason), reason
        assert reason.isprintable()
        assert len(reason) < 600, reason
    assert service.said == []
    return code


def test_mutated_zips(service, bodies):
    draw = random.Random(21)
    sent = (mutated(draw.choice(bodies[1]), draw) for _ in range(COUNT))
    codes = {check(service, "/predict?name=a.zip&answer=report", body) for body in sent}
    assert {200, 422} <= codes
    assert service.files() == []


def test_mutated_bodies(service, bodies):
    draw, image = random.Random(22), bodies[0]
    codes = []
    for _ in range(COUNT):
        if draw.random() < 0.5:
            body, headers = form((draw.choice(("a.nii.gz", "a.nii", "a.nrrd", "a.png", "a.zip")), image))
            codes.append(check(service, "/predict?answer=report", mutated(body, draw), **headers))
        else:
            ending = draw.choice(("nii.gz", "nii", "nrrd", "mha", "png", "jpg", "tif", "bmp"))
            codes.append(check(service, f"/predict?answer=report&name=a.{ending}", mutated(image, draw)))
    assert {400, 422} <= set(codes)
    assert service.files() == []


def one(name="a.nii", content=b"x", **changes):
    """A zip of one member, with fields of its entry changed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo(name)
        for key, value in changes.items():
            setattr(entry, key, value)
        archive.writestr(entry, content)
    return packed.getvalue()


def patched(content, offset, value):
    """The zip with other bytes at an offset of its central directory."""
    start = content.index(b"PK\x01\x02") + offset
    return content[:start] + value + content[start + len(value) :]


def twice():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.nii", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.nii", "2")
    return packed.getvalue()


def many(count):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.nii", "")
    return packed.getvalue()


ODD_ZIPS = {
    "empty": lambda: many(0),
    "end only, of many disks": lambda: b"PK\5\6" + struct.pack("<HHHHIIH", 7, 7, 9, 9, 0, 0, 0),
    "zip64 locator without record": lambda: b"PK\6\7" + struct.pack("<LQL", 0, 10**12, 1) + one(),
    "nul in a name": lambda: one("a\0b.nii"),
    "name of 4000 letters": lambda: one("a" * 4000 + ".nii"),
    "deep folders": lambda: one("a/" * 900 + "a.nii"),
    "terminal escapes in a name": lambda: one("\x1b[31mred\x07.txt"),
    "right to left": lambda: one("a\u202egnp.nii"),
    "no UTF-8 name": lambda: patched(one("ab.nii"), 46, b"\xff\xfe"),
    "file and folder of one name": lambda: both("a", "a/b.nii"),
    "same name twice": twice,
    "leads out": lambda: one("../a.nii"),
    "absolute": lambda: one("/etc/a.nii"),
    "of a drive": lambda: one("C:\\a.nii"),
    "link": lambda: one("a.nii", b"/etc/passwd", external_attr=0o120777 << 16, create_system=3),
    "named pipe": lambda: one("a.nii", external_attr=0o010644 << 16, create_system=3),
    "encrypted": lambda: patched(one(), 8, b"\1\0"),
    "unknown compression": lambda: patched(one(), 10, b"\x63\0"),
    "needs a later version": lambda: patched(one(), 6, b"\xff\0"),
    "wrong checksum": lambda: patched(one(), 16, b"\1\2\3\4"),
    "size of 4 GiB": lambda: patched(one(), 20, b"\xfe\xff\xff\xff\xfe\xff\xff\xff"),
    "offset beyond the end": lambda: patched(one(), 42, b"\xfe\xff\xff\x7f"),
    "bomb": lambda: deflated(b"\0" * 8_000_000),
    "zip in a zip": lambda: one("a.zip", one()),
    "only hidden files": lambda: one("__MACOSX/._a.nii"),
    "text alone": lambda: one("a.txt"),
    "gzip": lambda: zlib.compress(b"x", wbits=31),
}


def both(*names):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return packed.getvalue()


def deflated(content):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", content)
    return packed.getvalue()


@pytest.mark.parametrize("kind", ODD_ZIPS)
def test_odd_zips(service, kind):
    assert check(service, "/predict?name=a.zip", ODD_ZIPS[kind]()) == 422
    assert service.files() == []


@pytest.mark.parametrize("kind", ODD_ZIPS)
def test_odd_zips_on_the_command_line(tiny_run, tmp_path, kind, capsys):
    from medmamba.cli.main import run

    (tmp_path / "a.zip").write_bytes(ODD_ZIPS[kind]())
    with pytest.raises(SystemExit) as ended:
        run(["predict", str(tiny_run), str(tmp_path / "a.zip"), "-o", str(tmp_path / "out"), "--device", "cpu"])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code in (1, 2)
    assert "Traceback" not in "".join(said)
    assert said[-1].startswith("Error: ")
    assert all(line.isprintable() for line in said)
