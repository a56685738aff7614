"""Checkpoints are read as data: those of torch are read whole, crafted ones run nothing and are refused by name."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmamba.errors import InputError
from medmamba.nnunet.checkpoint_file import CheckpointFile
from medmamba.nnunet.data_pickle import read_data_pickle

OLD = {"_use_new_zipfile_serialization": False}


def trained() -> dict[str, Any]:
    """What a trainer of nnU-Net stores, its parts in every form that occurs."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    return {
        "network_weights": network.state_dict(),
        "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(9)[4:7],
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"losses": [np.float64(0.25), np.float32(-1.5)], "epochs": [np.int64(7)], "ok": [np.bool_(True)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {"device": torch.device("cuda", 0), "fold": "all", "plans": {"a": [1, 2.5, None, True, ""]}},
        "inference_allowed_mirroring_axes": (0, 1),
        "bytes": b"\x00\xff",
        "large": 2**70,
    }


@pytest.mark.parametrize("form", [{}, OLD], ids=["zip", "old"])
def test_a_checkpoint_of_torch_is_read_whole(tmp_path: Path, form: dict[str, Any]) -> None:
    path, wanted = tmp_path / "checkpoint_final.pth", trained()
    torch.save(wanted, path, **form)
    with CheckpointFile(path) as file:
        found = file.content
        assert found.keys() == wanted.keys()
        for name in ("logging", "_best_ema", "current_epoch", "inference_allowed_mirroring_axes", "bytes", "large"):
            assert found[name] == wanted[name]
        assert found["init_args"] == {**wanted["init_args"], "device": "cuda"}
        weights = found["network_weights"]
        assert list(weights) == list(wanted["network_weights"])
        for name, tensor in wanted["network_weights"].items():
            assert torch.equal(file.tensor(weights[name]), tensor)
        for name in ("half", "transposed", "part", "empty", "parameter"):
            made = file.tensor(found[name])
            assert made.dtype == wanted[name].dtype
            assert torch.equal(made, wanted[name].detach())


class Attack:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def program(*parts: str | bytes) -> bytes:
    return b"".join(part.encode("latin1") if isinstance(part, str) else part for part in parts)


def call(name: str, arguments: bytes = b")") -> bytes:
    """A pickle that calls a function by its name."""
    module, _, function = name.rpartition(".")
    return program("\x80\x02c", module, "\n", function, "\n", arguments, "R.")


HARMFUL = {
    "os.system": (pickle.dumps(Attack(os.system, "touch was_run")), r"wants posix\.system, which is not read"),
    "eval": (pickle.dumps(Attack(eval, "1")), r"wants builtins\.eval"),
    "exec, protocol 0": (pickle.dumps(Attack(exec, "1"), 0), r"wants (builtins|__builtin__)\.exec"),
    "getattr": (pickle.dumps(Attack(getattr, "x", "upper")), r"wants builtins\.getattr"),
    "rmtree": (pickle.dumps(Attack(shutil.rmtree, "x")), r"wants shutil\.rmtree"),
    "open": (pickle.dumps(Attack(open, "was_run", "w")), r"wants (_io|io)\.open"),
    "a class": (pickle.dumps(io.BytesIO), r"wants _io\.BytesIO"),
    "an object": (pickle.dumps(Path("x")), r"wants pathlib"),
    "numpy array": (pickle.dumps(np.zeros(2)), r"wants numpy\._core\.\w+\.\w+"),
    "a function in a list": (pickle.dumps([print]), r"wants builtins\.print"),
    "nested name": (pickle.dumps(Attack(os.path.join, "a"), 4), r"wants posixpath\.join"),
    "loads": (call("pickle.loads", b"C\x01.\x85"), r"wants pickle\.loads"),
    "torch.load": (call("torch.serialization.load"), r"wants torch\.serialization\.load"),
    "torch.hub": (call("torch.hub.load"), r"wants torch\.hub\.load"),
    "numpy loader": (call("numpy.lib.npyio.load"), r"wants numpy\.lib\.npyio\.load"),
    "dots in a name": (program("\x80\x04\x8c\x02os\x8c\x0bpath.system\x93."), r"wants os\.path\.system"),
    "a name that is a number": (program("\x80\x04K\x01K\x02\x93."), r"wants a name that is no text"),
    "inst": (program("(ios\nsystem\n."), r"holds more than data \(the pickle's INST\)"),
    "obj": (program("(c__builtin__\nbytes\no."), r"holds more than data \(the pickle's OBJ\)"),
    "new object": (
        program("\x80\x02c__builtin__\nbytes\n)", b"\x81."),
        r"holds more than data \(the pickle's NEWOBJ\)",
    ),
    "extension": (program("\x80\x02", b"\x82\x01."), r"holds more than data \(the pickle's EXT1\)"),
    "a set": (pickle.dumps({1}), r"holds more than data \(the pickle's EMPTY_SET\)"),
    "an outer buffer": (program("\x80\x05", b"\x97."), r"holds more than data \(the pickle's NEXT_BUFFER\)"),
    "an identifier": (program("\x80\x02Pabc\n."), r"holds more than data \(the pickle's PERSID\)"),
    "an identifier on the stack": (program("\x80\x02NQ."), r"refers to data outside of it"),
    "a call of a text": (program("\x80\x02X\x01\0\0\0a)R."), r"wants a call of str"),
    "a call of a storage class": (call("torch.FloatStorage"), r"wants torch\.FloatStorage"),
    "attributes of a list": (program("\x80\x02]}b."), r"sets attributes of list"),
    "attributes of a function": (program("\x80\x02c_codecs\nencode\n}b."), r"sets attributes of Named"),
    "keys of tuples": (program("\x80\x02})Ns."), r"a table with keys of tuple"),
    "keys of chosen hashes": (
        program("\x80\x02}", pickle.dumps(2**61 - 1, 2)[2:-1], "Ns."),
        r"a table with keys of int",
    ),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_pickle_is_refused_by_what_it_wanted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, message = HARMFUL[name]
    with pytest.raises(InputError, match=rf"^x\.pth: .*{message}") as raised:
        read_data_pickle(io.BytesIO(data), "x.pth")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def archive(path: Path, parts: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as made:
        for name, data in parts.items():
            made.writestr(f"archive/{name}", data)
    return path


def tensor_pickle(
    count: int = 4, shape: tuple[int, ...] = (4,), strides: tuple[int, ...] = (1,), key: str = "0"
) -> bytes:
    """The pickle of one tensor whose storage has ``count`` values."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if thing is marker else None

    marker, out = object(), io.BytesIO()

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (marker, 0, shape, strides, False, OrderedDict())

    Pickler(out, 2).dump({"w": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize(
    ("parts", "packing", "message"),
    [
        (
            {"data.pkl": tensor_pickle(), "data/0": b"\0" * 2**22},
            zipfile.ZIP_DEFLATED,
            "its parts are larger than the file",
        ),
        ({"data.pkl": tensor_pickle(), "data/0": os.urandom(16)}, zipfile.ZIP_DEFLATED, "data.pkl is compressed"),
        ({"data.pkl": tensor_pickle(2**40)}, zipfile.ZIP_STORED, "a tensor of 4398046511104 bytes in a file of"),
        ({"data.pkl": tensor_pickle(key="../x")}, zipfile.ZIP_STORED, r"names a storage '\.\./x'"),
        ({"data.pkl": tensor_pickle()}, zipfile.ZIP_STORED, "archive/data/0 is missing"),
        ({"data.pkl": tensor_pickle(), "data/0": b"\0" * 12}, zipfile.ZIP_STORED, "storage 0 has 12 of 16 bytes"),
        ({"data.pkl": tensor_pickle(), "data/0": b"\0" * 99}, zipfile.ZIP_STORED, "data/0 has 99 bytes, too many"),
        ({"data.pkl": tensor_pickle(4, (2**50,), (0,)), "data/0": b"\0" * 16}, zipfile.ZIP_STORED, "in 4 values"),
        ({"data.pkl": tensor_pickle(4, (2,), (9,)), "data/0": b"\0" * 16}, zipfile.ZIP_STORED, "in 4 values"),
        ({"data.pkl": tensor_pickle(4, (-1,), (1,))}, zipfile.ZIP_STORED, "a tensor of impossible shape"),
        ({"data.pkl": pickle.dumps(1), "more/data.pkl": b""}, zipfile.ZIP_STORED, "a zip file, but no checkpoint"),
        ({"image.nii": b""}, zipfile.ZIP_STORED, "a zip file, but no checkpoint"),
        ({"data.pkl": pickle.dumps(1), "byteorder": b"big"}, zipfile.ZIP_STORED, "big-endian"),
        ({"data.pkl": pickle.dumps(Attack(os.system, "touch was_run"))}, zipfile.ZIP_STORED, r"wants posix\.system"),
    ],
)
def test_a_crafted_archive_is_refused(parts: dict[str, bytes], packing: int, message: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pth", parts, packing)
    with pytest.raises(InputError, match=message), CheckpointFile(path) as file:
        file.tensor(file.content["w"])


def test_parts_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Many names for the same place unpack to more than the file."""
    path = archive(tmp_path / "x.pth", {"data.pkl": pickle.dumps(1), "data/0": b"\0" * 4096})
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", data, end + 16)[0]
    directory = data[start:end]
    entry = directory[directory.rindex(b"PK\x01\x02") :]
    repeated = directory + entry * 50
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 52, 52, len(repeated), start, 0)
    path.write_bytes(data[:start] + repeated + tail)
    with pytest.raises(InputError, match="its parts are larger than the file"):
        CheckpointFile(path)


def read_all(path: Path) -> None:
    with CheckpointFile(path) as file:
        for stored in file.content["network_weights"].values():
            file.tensor(stored)


@pytest.mark.parametrize("form", [{}, OLD], ids=["zip", "old"])
def test_a_file_cut_anywhere_is_reported_in_one_line(form: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save(trained(), path, **form)
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"^[^\n]*checkpoint_final\.pth: [^\n]*$"):
            read_all(path)


def test_a_single_changed_byte_of_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(64)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(4).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="CRC-32"), CheckpointFile(path) as file:
        file.tensor(file.content["w"])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_data_or_one_line(data: bytes) -> None:
    with contextlib.suppress(InputError):
        value = read_data_pickle(io.BytesIO(b"\x80\x04" + data + b"."), "x")
        assert type(value).__module__ in ("builtins", "medmamba.nnunet.data_pickle")


def test_work_is_bounded_for_nests_of_references() -> None:
    """Sixty tables, each twice in the next: as a tree they would be 2^60 tables."""
    nest = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60)) + b"."
    value = read_data_pickle(io.BytesIO(nest), "x")
    for _ in range(59):
        value = value[0]
    assert value == []


def test_a_pickle_of_too_many_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmamba.nnunet.data_pickle.MOST_STEPS", 1000)
    with pytest.raises(InputError, match="more than 1000 steps"):
        read_data_pickle(io.BytesIO(b"N" * 2000 + b"."), "x")
