"""NRRD, MetaImage, flat images, .hdr/.img pairs: read as SimpleITK and Pillow read them, written on the same grid."""

import gzip
import hashlib
import io
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medmamba.errors import InputError
from medmamba.geometry import Grid, Reorient, SpatialTrail, affine_from
from medmamba.images import read_channels, read_image, read_label_map, write_image, write_label_map

pytestmark = pytest.mark.filterwarnings("error")
LPS = np.diag([-1.0, -1, 1])


def oblique(seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def itk_volume(kind: str = "i2", channels: int = 1) -> sitk.Image:
    shape = (4, 5, 6) if channels == 1 else (4, 5, 6, channels)
    array = (np.random.default_rng(1).normal(size=shape) * 50 + 100).astype(kind)
    image = sitk.GetImageFromArray(array, isVector=channels > 1)
    image.SetSpacing((0.5, 1.5, 3.0))
    image.SetOrigin((10.25, -20, 30))
    image.SetDirection(oblique().ravel().tolist())
    return image


def assert_same_as_itk(ours, itk: sitk.Image) -> None:
    array = sitk.GetArrayFromImage(itk).astype(np.float32)
    expected = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    np.testing.assert_array_equal(ours.array, expected.transpose(0, 3, 2, 1))
    affine = np.eye(4)
    affine[:3, :3] = LPS @ np.array(itk.GetDirection()).reshape(3, 3) * itk.GetSpacing()
    affine[:3, 3] = LPS @ itk.GetOrigin()
    np.testing.assert_allclose(ours.grid.affine, affine, atol=1e-6)


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mhd", "nhdr"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_volumes_are_read_as_simpleitk_reads_them(tmp_path, ending, packed, kind):
    image = itk_volume(kind)
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(image, str(path), packed)
    ours = read_image(path)
    assert_same_as_itk(ours, image)
    assert ours.orientation_known
    assert ours.warnings == ()


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_several_numbers_per_voxel_are_channels(tmp_path, ending):
    image = itk_volume("f4", channels=2)
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    assert_same_as_itk(read_image(tmp_path / f"a.{ending}"), image)


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mhd"])
def test_a_mask_has_the_geometry_of_its_image_word_for_word(tmp_path, ending):
    image = itk_volume()
    path, mask = tmp_path / f"image.{ending}", tmp_path / f"mask.{ending}"
    sitk.WriteImage(image, str(path))
    ours = read_image(path)
    labels = (ours.array[0] > 100).astype(np.int64) * 300
    write_label_map(mask, labels, like=ours)
    words = [(b"space directions", b"space origin", b"space:"), (b"TransformMatrix", b"Offset", b"ElementSpacing")]
    for line in path.read_bytes()[:1000].split(b"\n\n")[0].splitlines():
        if line.startswith(words[ending != "nrrd"]):
            assert line in mask.read_bytes()
    again = sitk.ReadImage(str(mask))
    assert again.GetPixelIDTypeAsString() == "16-bit unsigned integer"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again).T, labels)
    assert again.GetOrigin() == image.GetOrigin()
    np.testing.assert_allclose(again.GetDirection(), image.GetDirection(), atol=1e-12)
    assert read_label_map(mask).grid == ours.grid


@pytest.mark.parametrize("source", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("target", ["nii.gz", "nrrd", "mha", "mhd", "hdr"])
def test_every_kind_can_be_written_from_every_other(tmp_path, source, target):
    image = itk_volume("f4")
    sitk.WriteImage(image, str(tmp_path / f"a.{source}"))
    ours = read_image(tmp_path / f"a.{source}")
    write_label_map(tmp_path / f"m.{target}", (ours.array[0] > 100).astype(int), like=ours)
    write_image(tmp_path / f"p.{target}", ours.array, like=ours)
    for name in ("m", "p"):
        again = sitk.ReadImage(str(tmp_path / f"{name}.{'img' if target == 'hdr' else target}"))
        np.testing.assert_allclose(again.GetSpacing(), image.GetSpacing(), rtol=1e-6)
        np.testing.assert_allclose(again.GetOrigin(), image.GetOrigin(), rtol=1e-6)
        np.testing.assert_allclose(again.GetDirection(), image.GetDirection(), atol=1e-6)
    np.testing.assert_array_equal(read_image(tmp_path / f"p.{target}").array, ours.array)


@pytest.mark.parametrize("ending", ["nrrd", "mha", "nii.gz", "hdr"])
def test_probabilities_of_several_classes_are_written(tmp_path, ending):
    grid = Grid((3, 4, 5), affine_from((1, 2, 3), origin_mm=(7, 8, 9), direction=oblique(2)))
    array = np.random.default_rng(0).random((3, 3, 4, 5), dtype=np.float32)
    write_image(tmp_path / f"p.{ending}", array, like=grid)
    again = read_image(tmp_path / f"p.{ending}")
    np.testing.assert_array_equal(again.array, array)
    np.testing.assert_allclose(again.grid.affine, grid.affine, atol=1e-5)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_flat_images_with_millimetres_keep_their_two_axes(tmp_path, ending):
    image = sitk.GetImageFromArray(np.arange(30, dtype=np.uint8).reshape(5, 6))
    image.SetSpacing((0.5, 0.25))
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    ours = read_image(tmp_path / f"a.{ending}")
    assert ours.grid.shape == (6, 5, 1)
    assert ours.grid.spacing_mm[:2] == (0.5, 0.25)
    write_label_map(tmp_path / f"m.{ending}", np.ones((6, 5, 1), int), like=ours)
    again = sitk.ReadImage(str(tmp_path / f"m.{ending}"))
    assert (again.GetSize(), again.GetSpacing()) == ((6, 5), (0.5, 0.25))


def test_nrrd_in_ras_and_without_orientation(tmp_path):
    head = b"NRRD0005\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n"
    data = bytes(range(24))
    ras = b"space: RAS\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\n"
    (tmp_path / "ras.nrrd").write_bytes(head + ras + b"\n" + data)
    np.testing.assert_array_equal(
        read_image(tmp_path / "ras.nrrd").grid.affine, affine_from((2, 3, 4), origin_mm=(1, 2, 3))
    )
    (tmp_path / "spaced.nrrd").write_bytes(head + b"spacings: 2 3 4\n# who\npatient:=name\n\n" + data)
    spaced = read_image(tmp_path / "spaced.nrrd")
    assert spaced.grid.spacing_mm == (2, 3, 4)
    assert not spaced.orientation_known
    (tmp_path / "bare.nrrd").write_bytes(head + b"\n" + data)
    bare = read_image(tmp_path / "bare.nrrd")
    assert bare.grid.spacing_mm is None
    write_label_map(tmp_path / "m.nrrd", np.ones((2, 3, 4), int), like=bare)
    assert read_label_map(tmp_path / "m.nrrd").grid.affine is None


def damaged(path: Path, change) -> str:
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value).replace(str(path), path.name)
    assert len(message) < 300
    assert "\n" not in message
    return message


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_volumes_are_refused(tmp_path, ending, packed):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(itk_volume(), str(path), packed)
    raw = path.read_bytes()
    assert "cut off" in damaged(path, lambda r: r[:-9])
    if packed:
        wrong = bytearray(raw)
        wrong[-3 if ending == "mha" else -7] ^= 1
        path.write_bytes(raw)
        assert "checksum" in damaged(path, lambda r: bytes(wrong))
    path.write_bytes(raw)
    assert "not a" in damaged(path, lambda r: b"junk" + r)
    path.write_bytes(raw)
    sizes = (b"sizes: 6 5 4", b"DimSize = 6 5 4")[ending == "mha"]
    for new, words in ((b"60000 50000 40000", "above the limit"), (b"6 5", "sizes"), (b"6 0 4", "at least 1")):
        path.write_bytes(raw)
        assert words in damaged(path, lambda r, new=new: r.replace(sizes, sizes.replace(b"6 5 4", new)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"type: short", b"type: block", "voxels of type 'block'"),
        (b"encoding: gzip", b"encoding: bzip2", "raw and gzip are read"),
        (b"endian: little\n", b"", "byte order"),
        (b"left-posterior-superior", b"left-posterior-superior-time", "its space is"),
        (b"space origin: (", b"space origin: (nan", "3 numbers are needed"),
        (b"kinds: domain", b"kinds: domain\nkinds: domain", "occurs twice"),
        (b"type: short", b"data file: ../../etc/passwd\ntype: short", "They must be in a file beside it"),
        (b"type: short", b"data file: LIST\ntype: short", "in several files"),
        (b"type: short", b"byte skip: 9\ntype: short", "skips over data"),
        (b"NRRD0004\n", b"NRRD0004\nrubbish\n", "is not understood: 'rubbish'"),
    ],
)
def test_nrrd_headers_that_cannot_be_used_are_named(tmp_path, old, new, words):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(itk_volume(), str(path), True)
    assert old in path.read_bytes()
    assert words in damaged(path, lambda r: r.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"MET_SHORT", b"MET_STRING", "voxels of type 'MET_STRING'"),
        (b"ElementSpacing = 0.5", b"ElementSpacing = x", "3 numbers are needed"),
        (b"ElementSpacing = 0.5", b"ElementSpacing = 0", "spacing along i is 0 mm"),
        (b"NDims = 3", b"NDims = 4", "4 dimensions"),
        (b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd", "They must be in a file beside it"),
        (b"ElementDataFile = LOCAL", b"ElementDataFile = %03d.raw", "in several files"),
        (b"BinaryData = True", b"BinaryData = False", "as text"),
    ],
)
def test_metaimage_headers_that_cannot_be_used_are_named(tmp_path, old, new, words):
    path = tmp_path / "a.mha"
    sitk.WriteImage(itk_volume(), str(path), True)
    assert old in path.read_bytes()
    assert words in damaged(path, lambda r: r.replace(old, new, 1))


def test_random_damage_to_text_headers_gives_an_image_or_one_line(tmp_path):
    rng = np.random.default_rng(5)
    for ending in ("nrrd", "mha"):
        path = tmp_path / f"a.{ending}"
        sitk.WriteImage(itk_volume(), str(path), True)
        raw = path.read_bytes()
        for _ in range(300):
            broken = bytearray(raw)
            for at in rng.integers(0, min(len(raw), 500), int(rng.integers(1, 5))):
                broken[at] = int(rng.integers(0, 256))
            path.write_bytes(broken)
            try:
                message = ""
                read_image(path)
            except InputError as error:
                message = str(error)
            assert "\n" not in message


def test_one_body_in_all_sample_formats_is_one_body(shared_data):
    """NRRD, MHA, MHD and two other axis orders of NIfTI: the same voxels once brought to RAS."""
    seen = set()
    for kind, total in (("image", -53646912), ("label", 96672)):
        for path in sorted((shared_data / "format_samples").glob(f"spleen_2_{kind}*")):
            if path.suffix == ".zraw":
                continue
            image = read_image(path) if kind == "image" else read_label_map(path)
            array = image.array if kind == "image" else image.array[None]
            trail = SpatialTrail(image.grid).then(Reorient.to_canonical(image.grid))
            canonical = np.ascontiguousarray(trail.apply(array).astype(np.int16))
            assert canonical.sum(dtype=np.int64) == total
            np.testing.assert_allclose(trail.grid.spacing_mm, (0.794922, 0.794922, 5), rtol=1e-5)
            seen.add((kind, trail.grid.shape, hashlib.sha256(canonical.tobytes()).hexdigest()))
    assert len(seen) == 2


# .hdr and .img


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_a_pair_is_read_by_either_name_and_written_as_a_pair(tmp_path, volume, kind):
    nib.save(kind(volume, affine_from((1, 2, 3))), tmp_path / "a.hdr")
    for name in ("a.hdr", "a.img"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0], volume)
    image = read_image(tmp_path / "a.img")
    write_label_map(tmp_path / "m.img", (volume > 0).astype(int), like=image)
    mask = nib.load(tmp_path / "m.hdr")
    assert isinstance(mask, kind)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), volume > 0)
    assert mask.affine.tobytes() == nib.load(tmp_path / "a.hdr").affine.tobytes()
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "a.hdr")


# Flat images


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 (rows 5, columns 7, 3)."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif", "tiff", "bmp"])
def test_colours_are_channels_and_columns_come_first(tmp_path, picture, ending):
    Image.fromarray(picture).save(tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}")
    assert image.array.shape == (3, 7, 5, 1)
    assert image.grid == Grid((7, 5, 1))
    assert image.array[2, 6, 1, 0] == picture[1, 6, 2]
    Image.fromarray(picture[..., 0]).save(tmp_path / f"g.{ending}")
    np.testing.assert_array_equal(read_image(tmp_path / f"g.{ending}").array[0, :, :, 0], picture[..., 0].T)


def test_jpeg_images_are_read_and_jpeg_masks_are_not(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    np.testing.assert_array_equal(image.array[..., 0].transpose(2, 1, 0), np.asarray(Image.open(tmp_path / "a.jpg")))
    with pytest.raises(InputError, match="JPEG changes label values"):
        read_label_map(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="JPEG changes label values"):
        write_label_map(tmp_path / "m.jpg", np.ones((7, 5, 1), int), like=image)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_kept(tmp_path, ending):
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}").array[0, :, :, 0], deep.T)


def test_float_tiff_is_read(tmp_path):
    Image.fromarray(np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").array.min() == -1


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@pytest.mark.parametrize("largest", [1, 255, 700])
def test_masks_of_flat_images_come_back(tmp_path, picture, ending, largest):
    labels = (picture[..., 0].T[..., None] > 100).astype(np.int64) * largest
    if ending == "bmp" and largest > 255:
        with pytest.raises(InputError, match="do not fit into a BMP"):
            write_label_map(tmp_path / "m.bmp", labels, like=Grid((7, 5, 1)))
        return
    write_label_map(tmp_path / f"m.{ending}", labels, like=Grid((7, 5, 1)))
    np.testing.assert_array_equal(read_label_map(tmp_path / f"m.{ending}").array, labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"m.{ending}")).T, labels[..., 0])


def test_masks_as_black_and_white_palette_or_equal_colours_are_read(tmp_path, picture):
    mask = (picture[..., 0] > 100).astype(np.uint8)
    Image.fromarray(mask.astype(bool)).save(tmp_path / "1.png")
    palette = Image.fromarray(mask * 2)
    palette.putpalette([0, 0, 0, 9, 9, 9, 255, 0, 0])
    palette.save(tmp_path / "p.png")
    Image.fromarray(np.stack([mask * 255] * 3, axis=-1)).save(tmp_path / "c.png")
    assert set(read_label_map(tmp_path / "1.png").counts()) == {0, 1}
    assert set(read_label_map(tmp_path / "p.png").counts()) == {0, 2}
    assert set(read_label_map(tmp_path / "c.png").counts()) == {0, 255}
    assert read_image(tmp_path / "p.png").channels == 3
    Image.fromarray(picture).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="a mask in colours"):
        read_label_map(tmp_path / "x.png")


def test_an_opaque_alpha_channel_is_dropped_and_a_real_one_refused(tmp_path, picture):
    alpha = np.full((5, 7, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([picture, alpha], axis=2)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.channels == 3
    assert "alpha channel that hides nothing" in image.warnings[0]
    alpha[0, 0] = 7
    Image.fromarray(np.concatenate([picture, alpha], axis=2)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="partly transparent"):
        read_image(tmp_path / "b.png")


def test_damaged_flat_images_are_refused(tmp_path, picture):
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for ending in ("png", "tif", "bmp", "jpg"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(big).save(path)
        message = damaged(path, lambda r: r[: len(r) // 2])
        assert "cut off" in message, message
    path = tmp_path / "b.png"
    Image.fromarray(big).save(path)
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    assert "checksum" in damaged(path, lambda r: bytes(flipped))
    (tmp_path / "t.png").write_bytes(b"hello")
    with pytest.raises(InputError, match="not a PNG, TIFF, BMP or JPEG"):
        read_image(tmp_path / "t.png")


def png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_png_bombs_and_lossy_depths_are_refused_before_they_are_unpacked(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, 8, 0, bytes(1000)))
    with pytest.raises(InputError, match=r"10000000000 pixels\) exceeds limit"):
        read_image(tmp_path / "bomb.png")
    (tmp_path / "deep.png").write_bytes(png(2, 2, 16, 2, bytes(2 * 13)))
    with pytest.raises(InputError, match="16-bit colours"):
        read_image(tmp_path / "deep.png")


def test_several_pages_are_refused(tmp_path, picture):
    pages = [Image.fromarray(picture), Image.fromarray(picture)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="2 pages"):
        read_image(tmp_path / "a.tif")


def test_a_volume_does_not_fit_into_a_flat_image(tmp_path):
    with pytest.raises(InputError, match="5 slices do not fit into a flat image"):
        write_label_map(tmp_path / "m.png", np.ones((3, 4, 5), int), like=Grid((3, 4, 5)))


def test_an_unknown_ending_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"not a known kind of image file. Known endings: .nii.gz, .nii"):
        read_image(tmp_path / "a.xyz")
    buffer = io.BytesIO()
    gzip.GzipFile(fileobj=buffer, mode="w").close()
    (tmp_path / "a.nrrd").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="not a NRRD file"):
        read_image(tmp_path / "a.nrrd")


def test_random_damage_to_pictures_gives_an_image_or_one_line(tmp_path):
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for ending in ("png", "tif", "bmp", "jpg"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(pixels).save(path)
        raw = path.read_bytes()
        for _ in range(60):
            broken = bytearray(raw)
            for at in rng.integers(0, min(len(raw), 400), int(rng.integers(1, 5))):
                broken[at] = int(rng.integers(0, 256))
            path.write_bytes(broken[: int(rng.integers(len(broken) // 2, len(broken) + 1))])
            try:
                message = ""
                read_image(path)
            except InputError as error:
                message = str(error)
            assert "\n" not in message


@pytest.mark.parametrize(
    "pattern",
    ["hippocampus/*sTr/*_00[1-6].nii.gz", "cardiac_lv/*sTr/*HF-I-01*", "spleen_ct_sample/*sTr/*", "format_samples/*"],
)
def test_healthy_real_files_are_read_as_simpleitk_reads_them(shared_data, pattern):
    paths = [path for path in sorted(shared_data.glob(pattern)) if path.suffix not in (".md", ".zraw")]
    assert len(paths) >= 2
    for path in paths:
        ours, itk = read_image(path), sitk.ReadImage(str(path))
        np.testing.assert_array_equal(ours.array[0], sitk.GetArrayFromImage(itk).T.astype(np.float32))
        affine = np.eye(4)
        affine[:3, :3] = LPS @ np.array(itk.GetDirection()).reshape(3, 3) * itk.GetSpacing()
        affine[:3, 3] = LPS @ itk.GetOrigin()
        np.testing.assert_allclose(ours.grid.affine, affine, atol=1e-4)


def test_simpleitk_is_needed_for_dicom_only(tmp_path, volume):
    """With SimpleITK, torch and Pillow out of reach, volumes are read and written."""
    code = (
        "import sys\n"
        "for name in ('SimpleITK', 'torch', 'PIL', 'matplotlib', 'scipy'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from medmamba.geometry import Grid, affine_from\n"
        "from medmamba.images import read_image, write_image, list_images\n"
        "from medmamba.datasets import read_dataset\n"
        "for ending in ('.nii.gz', '.nrrd', '.mha', '.hdr'):\n"
        "    path = sys.argv[1] + '/a' + ending\n"
        "    write_image(path, np.ones((1, 3, 4, 5)), like=Grid((3, 4, 5), affine_from((1, 2, 3))))\n"
        "    assert read_image(path).array.shape == (1, 3, 4, 5)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def test_an_analyze_header_is_refused_because_it_has_no_orientation(tmp_path, volume):
    nib.save(nib.AnalyzeImage(volume.astype(np.int16), np.eye(4)), tmp_path / "a.hdr")
    with pytest.raises(InputError, match=r"ANALYZE 7.5 file, which does not say how the image lies in the patient"):
        read_image(tmp_path / "a.hdr")


def test_the_options_of_reading_may_be_given_by_name(tmp_path):
    path = tmp_path / "broken.nii.gz"
    array = np.zeros((3, 3, 3), np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    with pytest.raises(InputError):
        read_image(path)
    assert read_image(path, nonfinite="zero").nonfinite_voxels == 1
    assert read_channels([path], nonfinite="zero", prefer="sform").nonfinite_voxels == 1
