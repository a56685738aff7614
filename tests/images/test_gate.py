"""Damaged files: each is refused in one line that says what, where and what to do; nothing else ever comes out."""

import gzip
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmamba.errors import InputError, MedmambaError, ResourceError
from medmamba.images import ReadOptions, gate, read_image, read_label_map

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("error")

RUNAWAY_SECONDS = 30
"""Processor time of one refusal, which takes milliseconds: beyond what a busy machine makes of them."""


def refused(path: Path, read=read_image, **options) -> str:
    """The message with which a file is refused: one line that names the file and ends in advice."""
    begun = time.process_time()
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert time.process_time() - begun < RUNAWAY_SECONDS
    message = str(caught.value).replace(str(path), path.name)
    assert "\n" not in message
    assert len(message) <= 300
    assert message.startswith(path.name)
    assert message.endswith(".")
    return message


# Containers


def test_a_gzip_file_cut_anywhere_is_refused(save, volume):
    path = save("a.nii.gz", volume)
    whole = path.read_bytes()
    for keep in (1, 5, 20, 200, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:keep])
        message = refused(path)
        assert "cut off" in message or "not a NIfTI" in message, (keep, message)


def test_the_checksum_is_looked_at(save, volume):
    path = save("a.nii.gz", volume)
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    assert "its checksum (CRC) does not fit (gzip). Copy it again" in refused(path)


def test_one_wrong_voxel_in_a_stored_block_is_noticed(tmp_path, save, volume):
    raw = gzip.decompress(save("a.nii.gz", volume).read_bytes())
    coder = zlib.compressobj(0, zlib.DEFLATED, 31)  # level 0: bytes as they are, only the CRC tells
    packed = bytearray(coder.compress(raw) + coder.flush())
    packed[500] ^= 255
    (tmp_path / "b.nii.gz").write_bytes(packed)
    assert "checksum (CRC)" in refused(tmp_path / "b.nii.gz")


def test_flipped_bits_are_refused(save, volume):
    path = save("a.nii.gz", volume)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        raw = bytearray(whole)
        for at in rng.integers(10, len(raw) - 8, 8):
            raw[at] ^= int(rng.integers(1, 256))
        path.write_bytes(raw)
        refused(path)


def test_several_members_are_one_file(save, volume):
    path = save("a.nii.gz", volume)
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(b"".join(gzip.compress(part) for part in (raw[:100], raw[100:600], b"", raw[600:])))
    image = read_image(path)
    np.testing.assert_array_equal(image.array[0], volume)
    assert image.warnings == ()


def test_a_damaged_last_member_is_refused_even_behind_the_last_voxel(save, volume):
    path = save("a.nii.gz", volume)
    extra = bytearray(gzip.compress(b"more"))
    extra[-5] ^= 1
    path.write_bytes(path.read_bytes() + extra)
    assert "checksum" in refused(path)


def test_zero_padding_is_fine_and_rubbish_is_told(save, volume):
    path = save("a.nii.gz", volume)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(512))
    assert read_image(path).warnings == ()
    path.write_bytes(whole + b"rubbish")
    assert "7 bytes that are not packed data follow the image" in read_image(path).warnings[0]


def test_gzip_is_known_by_its_content_not_by_its_name(save, volume):
    packed = save("a.nii.gz", volume)
    plain = packed.with_name("b.nii")
    plain.write_bytes(packed.read_bytes())
    assert "gzipped, against its name" in read_image(plain).warnings[0]
    packed.write_bytes(gzip.decompress(packed.read_bytes()))
    assert "not gzipped, against its name" in read_image(packed).warnings[0]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_that_are_missing_are_refused_and_extra_bytes_are_told(save, volume, name):
    short = save(name, volume, patch=lambda raw: raw[:-100])
    assert "cut off: 1092 bytes where its header announces 1192" in refused(short)
    long = save(name, volume, patch=lambda raw: raw + bytes(9))
    assert "9 bytes behind the last voxel were ignored" in read_image(long).warnings[0]


def test_files_that_are_no_images_are_refused(tmp_path):
    for name, content, words in (
        ("zero.nii.gz", b"", "the file is empty (0 bytes)"),
        ("text.nii.gz", b"not an image\n" * 50, "not a NIfTI file: its first bytes are b'not an i'"),
        ("short.nii", b"\x5c\x01\0\0", "cut off within its header"),
        ("gz_of_text.nii.gz", gzip.compress(b"hello"), "not a NIfTI file"),
        ("gz_of_nothing.nii.gz", gzip.compress(b""), "not a NIfTI file"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in refused(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.nii.gz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", bytes(1 << 22))
    assert "not a NIfTI file: its first bytes are b'PK" in refused(tmp_path / "zip.nii.gz")


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path, save, volume):
    (tmp_path / "folder.nii.gz").mkdir()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    (tmp_path / "dangling.nii.gz").symlink_to(tmp_path / "nothing")
    (tmp_path / "device.nii").symlink_to("/dev/zero")
    assert "a folder, not a file" in refused(tmp_path / "folder.nii.gz")
    assert "a named pipe, not a file" in refused(tmp_path / "pipe.nii.gz")
    assert "symbolic links" in refused(tmp_path / "loop.nii.gz")
    assert "a link to a file that does not exist" in refused(tmp_path / "dangling.nii.gz")
    assert "a device, not a file" in refused(tmp_path / "device.nii")
    assert "no such file" in refused(tmp_path / "missing.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(save("real.nii.gz", volume))
    np.testing.assert_array_equal(read_image(tmp_path / "link.nii.gz").array[0], volume)


# Bombs


def peak_of_reading(path: Path) -> tuple[str, float]:
    """Message and peak memory (MiB above that of an idle process) of reading a file in a process of its own."""
    code = (
        "import resource, sys\n"
        "from medmamba.images import nifti, read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    *message, peak = done.stdout.splitlines()
    return "\n".join(message), float(peak)


def bomb(shape: tuple[int, ...], content: int) -> bytes:
    """A gzipped NIfTI header of this shape with ``content`` zero bytes behind it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["pixdim"][1:4] = 1
    header["vox_offset"], header["magic"], header["sform_code"] = 352, b"n+1", 1
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    header["scl_slope"], header["scl_inter"] = 1, 0
    coder = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = coder.compress(header.binaryblock + bytes(4))
    for _ in range(content >> 24):
        packed += coder.compress(bytes(1 << 24))
    return packed + coder.flush()


@pytest.mark.parametrize(
    ("shape", "content", "words"),
    [
        ((30000, 30000, 30000), 0, "27000000000000 voxels, above the limit"),
        ((1000, 1000, 1000), 0, "more than"),
        ((64, 64, 64), 1 << 29, "unpacks to far more than the 262496 bytes"),
    ],
    ids=["huge_dims", "dims_beyond_the_file", "gz_overlong"],
)
def test_a_bomb_is_refused_in_little_time_and_memory(tmp_path, shape, content, words):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(bomb(shape, content))
    assert words in refused(path)
    message, peak = peak_of_reading(path)
    assert message.startswith("InputError")
    assert peak < 50


def test_an_image_that_does_not_fit_into_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "large.nii.gz"
    path.write_bytes(bomb((256, 256, 256), 1 << 24))
    monkeypatch.setattr(gate, "free_memory", lambda: 10 << 20)
    with pytest.raises(ResourceError, match=r"needs about \d+ MiB and \d+ MiB of memory are free"):
        read_image(path)
    assert refused(path, options=ReadOptions(max_voxels=1000)).count("above the limit of 1000")


def test_memory_that_is_free_is_known_here():
    free = gate.free_memory()
    assert free is None or 0 < free < resource.RLIM_INFINITY % (1 << 50)


# Headers


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [99, 6, 7, 5, 1, 1, 1, 1]}, "99 dimensions (dim[0])"),
        ({"dim": [0, 6, 7, 5, 1, 1, 1, 1]}, "0 dimensions"),
        ({"dim": [3, -6, 7, 5, 1, 1, 1, 1]}, "a shape of (-6, 7, 5)"),
        ({"dim": [3, 6, 0, 5, 1, 1, 1, 1]}, "a shape of (6, 0, 5)"),
        ({"dim": [1, 6, 1, 1, 1, 1, 1, 1]}, "one-dimensional"),
        ({"dim": [5, 6, 7, 5, 2, 3, 1, 1]}, "5 dimensions, shape (6, 7, 5, 2, 3)"),
        ({"dim": [3, 1, 1, 1, 1, 1, 1, 1]}, "a single voxel"),
        ({"datatype": 77}, "unknown type of voxels (datatype 77)"),
        ({"datatype": 32, "bitpix": 64}, "voxels are of type complex64"),
        ({"datatype": 128, "bitpix": 24}, "voxels are of type RGB"),
        ({"bitpix": 8}, "8 bits per voxel (bitpix) for datatype 16"),
        ({"magic": b""}, "ANALYZE"),
        ({"magic": b"ni1"}, "the header of a pair"),
        ({"vox_offset": 1e9}, "announces 1000000840 bytes, more than"),
        ({"vox_offset": -1000}, "voxels start at byte -1000"),
        ({"vox_offset": 352.5}, "voxels start at byte 352.5"),
        ({"vox_offset": np.nan}, "voxels start at byte nan"),
        ({"scl_slope": 1, "scl_inter": np.nan}, "scales voxels by 1 and nan"),
        ({"scl_slope": np.inf}, "scales voxels by inf"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "scales voxels by 1 and inf"),
        ({"scl_slope": 3e38}, "outside the range of float32"),
        ({"pixdim": [1, 0, 1.25, 3, 0, 0, 0, 0]}, "spacing along i (pixdim[1]) is 0"),
        ({"pixdim": [1, -0.8, 1.25, 3, 0, 0, 0, 0]}, "spacing along i (pixdim[1]) is -0.8"),
        ({"pixdim": [1, 0.8, np.nan, 3, 0, 0, 0, 0]}, "spacing along j (pixdim[2]) is nan"),
        ({"pixdim": [1, 0.8, 1.25, 1e9, 0, 0, 0, 0]}, "qform and sform have different axes"),
        ({"pixdim": [1, 0.8, 1.25, 4, 0, 0, 0, 0], "qform_code": 0}, "contradicts itself: spacing 0.8x1.25x4 mm"),
        ({"qform_code": 0, "srow_x": [np.nan, 0, 0, 0]}, "not finite"),
        ({"qform_code": 0, "srow_x": [-0.8, 0, 0, np.inf]}, "not finite"),
        ({"srow_x": [-0.8, 0, 0, 41]}, "qform and sform have different origins, by 1 mm"),
        ({"sform_code": 0, "quatern_b": 3}, "rotation (quatern_b, c, d) is not one"),
        ({"sform_code": 0, "quatern_b": np.nan}, "Export"),
        ({"qform_code": 0, "srow_y": [0.3, 0, 3, -20], "srow_x": [-0.74162, 0, 0, 40]}, "shear"),
        ({"xyzt_units": 1}, "outside 0.01 to 100 mm"),
    ],
)
def test_a_nonsensical_header_is_refused_and_the_field_is_named(save, volume, fields, words):
    assert words in refused(save("a.nii.gz", volume, **fields))


def test_a_contradicting_header_can_be_read_by_choice_and_masks_keep_it(save, volume, tmp_path):
    from medmamba.images import write_label_map

    path = save("a.nii.gz", volume, srow_x=[-0.8, 0, 0, 99])
    assert 'prefer="sform" or prefer="qform"' in refused(path)
    by_sform, by_qform = (read_image(path, ReadOptions(prefer=choice)) for choice in ("sform", "qform"))
    assert by_sform.grid.affine[0, 3] == 99
    assert by_qform.grid.affine[0, 3] == 40
    write_label_map(tmp_path / "m.nii.gz", np.ones(volume.shape, int), like=by_sform)
    mask = nib.load(tmp_path / "m.nii.gz")
    assert mask.header["srow_x"][3] == 99
    assert mask.header["qoffset_x"] == 40


def test_units_are_converted_and_that_is_said(save, volume):
    micron = np.diag([800.0, 1250, 3000, 1])
    image = read_image(save("a.nii.gz", volume, micron, xyzt_units=3))
    np.testing.assert_allclose(image.grid.spacing_mm, (0.8, 1.25, 3.0), rtol=1e-6)
    assert "micrometres and were converted" in image.warnings[0]
    metre = read_image(save("b.nii.gz", volume, np.diag([0.0008, 0.00125, 0.003, 1]), xyzt_units=1))
    np.testing.assert_allclose(metre.grid.spacing_mm, (0.8, 1.25, 3.0), rtol=1e-6)


def test_an_image_without_orientation_is_read_and_flagged(save, volume):
    path = save("a.nii.gz", volume, qform_code=0, sform_code=0)
    image = read_image(path)
    assert not image.orientation_known
    assert "orientation unknown, left and right included" in image.warnings[0]
    np.testing.assert_allclose(image.grid.affine, nib.load(path).affine)


def test_a_single_slice_needs_no_thickness(save):
    path = save("a.nii.gz", np.ones((4, 5, 1), np.float32) * np.arange(5)[None, :, None], np.diag([2, 3, 1, 1.0]))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<f", raw, 76 + 12, 0.0)  # pixdim[3]
    struct.pack_into("<h", raw, 252, 0)  # qform_code
    struct.pack_into("<f", raw, 280 + 40, 0.0)  # srow_z[2]
    path.write_bytes(gzip.compress(bytes(raw)))
    assert read_image(path).grid.spacing_mm == (2.0, 3.0, 1.0)


# Voxels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused_or_zeroed_on_request(save, volume, value):
    volume[1, 2, 3] = volume[5, 6, 4] = value
    path = save("a.nii.gz", volume)
    assert "2 voxels are NaN or infinite, the first at (1, 2, 3)" in refused(path)
    image = read_image(path, ReadOptions(nonfinite="zero"))
    assert image.nonfinite_voxels == 2
    assert image.array[0, 1, 2, 3] == 0
    assert "2 voxels were NaN or infinite and are zero now" in image.warnings[0]


def test_float64_voxels_beyond_float32_are_refused(save, volume):
    assert "outside the range of float32" in refused(save("a.nii.gz", volume.astype(np.float64) * 1e300))


def test_a_constant_image_is_flagged(save, volume):
    image = read_image(save("a.nii.gz", volume * 0 + 7))
    assert image.constant_channels == (0,)
    assert "all voxels have the same value" in image.warnings[0]


def test_a_label_map_with_channels_is_refused(save):
    path = save("l.nii.gz", np.zeros((3, 4, 5, 2), np.uint8))
    assert "2 channels; a label map has one" in refused(path, read_label_map)


# Fuzz: whatever the bytes, an image or one line


def fuzz(save, count: int) -> tuple[int, int]:
    path = save("a.nii", np.arange(210, dtype=np.int16).reshape(6, 7, 5))
    nifti2 = save("b.nii", np.arange(210, dtype=np.int16).reshape(6, 7, 5), kind=nib.Nifti2Image)
    whole = [path.read_bytes(), nifti2.read_bytes()]
    rng = np.random.default_rng(20)
    interesting = np.array([0, 1, 2, 127, 128, 255, 0x7F, 0x80], dtype=np.uint8)
    good = bad = 0
    target = path.with_name("fuzz.nii.gz")
    for number in range(count):
        raw = np.frombuffer(bytearray(whole[number % 2]), dtype=np.uint8)
        head = 540 if number % 2 else 348
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(0, head))
            length = int(rng.choice([1, 2, 4, 8]))
            if rng.random() < 0.5:
                raw[at : at + length] = rng.choice(interesting, size=len(raw[at : at + length]))
            else:
                raw[at : at + length] = rng.integers(0, 256, size=len(raw[at : at + length]))
        data = raw.tobytes()
        if rng.random() < 0.5:
            data = gzip.compress(data, 1)
            if rng.random() < 0.2:
                broken = bytearray(data)
                broken[int(rng.integers(0, len(broken)))] ^= int(rng.integers(1, 256))
                data = bytes(broken)
        target.write_bytes(data)
        for read in (read_image, read_label_map):
            begun, message = time.process_time(), ""
            try:
                read(target)
                good += 1
            except MedmambaError as error:
                bad += 1
                message = str(error).replace(str(target), target.name)
            assert time.process_time() - begun < RUNAWAY_SECONDS
            assert "\n" not in message
            assert len(message) <= 300, message
    return good, bad


def test_mutated_headers_give_an_image_or_one_line(save):
    good, bad = fuzz(save, 500)
    assert good > 50
    assert bad > 50


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute on an idle machine
def test_ten_thousand_mutated_headers_give_an_image_or_one_line_in_200_mb(save):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(save, 10_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
