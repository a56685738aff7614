"""Folders of DICOM slices: ordered by their place in the patient, and every gap, copy and mixture named."""

import locale
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import changed, write_enhanced, write_series, write_slice

from medmamba.datasets import load_case
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError
from medmamba.images import list_images, mask_ending, read_image, read_label_map, write_label_map


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (9, 6, 5)).astype(np.int16)


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_image(folder)
    message = str(caught.value).replace(str(folder), folder.name)
    assert "\n" not in message
    assert len(message) <= 400
    assert "CANARY" not in message
    return message


def test_a_series_is_read_in_the_order_of_its_positions(tmp_path, volume):
    before = locale.setlocale(locale.LC_ALL)
    image = read_image(write_series(tmp_path / "s", volume))
    np.testing.assert_array_equal(image.array[0], volume.T)
    np.testing.assert_allclose(image.grid.spacing_mm, (0.5, 0.75, 2.0))
    np.testing.assert_allclose(image.grid.affine[:3, 3], (-10, 20, 30))
    assert image.grid.orientation == "LPS"
    assert image.warnings == ()
    assert locale.setlocale(locale.LC_ALL) == before


@pytest.mark.parametrize("seed", range(4))
def test_oblique_series_lie_where_simpleitk_puts_them(tmp_path, volume, seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    direction = q * np.sign(np.linalg.det(q))
    folder = write_series(tmp_path / "s", volume, direction)
    ours = read_image(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    itk = reader.Execute()
    np.testing.assert_array_equal(ours.array[0], sitk.GetArrayFromImage(itk).T)
    lps = np.diag([-1.0, -1, 1])
    np.testing.assert_allclose(lps @ ours.grid.affine[:3, 3], itk.GetOrigin(), atol=1e-5)
    turn = np.array(itk.GetDirection()).reshape(3, 3) * itk.GetSpacing()
    np.testing.assert_allclose(lps @ ours.grid.affine[:3, :3], turn, atol=1e-5)


def test_values_are_rescaled_by_their_own_tags(tmp_path, volume):
    raw = np.abs(volume).astype(np.uint16)
    folder = write_series(tmp_path / "s", raw, **{"0028_1052": "-1024", "0028_1053": "2"})
    # The writer stores (value + 1024) / 2 as whole numbers: even values come back exactly, odd ones one lower.
    np.testing.assert_array_equal(read_image(folder).array[0], (raw // 2 * 2).T)


def test_a_missing_slice_is_named(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    (folder / "1.dcm").unlink()  # slice 4
    message = refused(folder)
    assert "a slice is missing: 4 mm between 3.dcm and 8.dcm, 2 mm elsewhere" in message


def test_a_doubled_slice_is_named(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    write_slice(folder / "copy.dcm", volume[0], (10, -20, 30 + 8))
    assert "1.dcm and copy.dcm are at the same place (1 such pairs)" in refused(folder)


def test_uneven_slices_are_named(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    write_slice(folder / "1.dcm", volume[4], (10, -20, 30 + 8.4))
    assert "slices are unevenly spaced" in refused(folder)


def test_two_series_in_one_folder_are_told(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    write_slice(folder / "other.dcm", volume[0], (0, 0, 0), series="9.9")
    listed = "(-: MR 9 slices of 6 x 5 pixels, 2 x 0.75 x 0.5 mm, UID 1.2.3; -: MR 1 slice of 6 x 5 pixels"
    assert f"2 series in one folder {listed}" in refused(folder)


def test_slices_that_do_not_belong_together_are_told(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    write_slice(folder / "x.dcm", volume[0][:, :4], (10, -20, 99))
    said = refused(folder)
    assert "slices of different size: 0.dcm and x.dcm" in said
    assert "They are 2 parts (:1 9 slices of 6 x 5 pixels, 2 x 0.75 x 0.5 mm, :2 1 slice of 6 x 4 pixels" in said
    assert "or :largest). Choose one with `medmamba predict --series`." in said
    write_slice(folder / "x.dcm", volume[0], (10, -20, 99), direction=np.eye(3)[:, [0, 2, 1]])
    assert "slices of different orientation: 0.dcm and x.dcm" in refused(folder)


def test_a_tilted_gantry_is_told(tmp_path, volume):
    for k, pixels in enumerate(volume):
        write_slice(tmp_path / "s" / f"{k}.dcm", pixels, (0, 0.5 * k, 2.0 * k))
    assert "tilted gantry" in refused(tmp_path / "s")


def test_damaged_files_are_named(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    whole = (folder / "3.dcm").read_bytes()
    (folder / "3.dcm").write_bytes(whole[:-30])
    assert "3.dcm" in refused(folder)
    (folder / "3.dcm").write_bytes(whole[:200])
    assert "3.dcm" in refused(folder)


def test_a_folder_without_dicom_says_where_some_is(tmp_path, volume):
    write_series(tmp_path / "study" / "series 1", volume)
    assert "no DICOM slices in this folder. There are some in its folder series 1" in refused(tmp_path / "study")


def test_other_files_dicomdir_and_links_are_left_alone(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    (folder / "notes.txt").write_text("x")
    shutil.copy(folder / "0.dcm", folder / "DICOMDIR")
    (folder / "link.dcm").symlink_to(folder / "0.dcm")
    (folder / ".hidden.dcm").write_bytes((folder / "0.dcm").read_bytes())
    image = read_image(folder)
    assert image.grid.shape[2] == 9
    for part in ("1 hidden (.hidden.dcm)", "1 not DICOM (notes.txt)", "2 identical copy (DICOMDIR, link.dcm)"):
        assert part in image.warnings[0]


def test_masks_of_a_series_are_nifti_on_its_grid_without_its_patient(tmp_path, volume):
    image = read_image(write_series(tmp_path / "s", volume))
    assert mask_ending(tmp_path / "s") == ".nii.gz"
    write_label_map(tmp_path / "m.nii", (image.array[0] > 0).astype(int), like=image)
    mask = read_label_map(tmp_path / "m.nii")
    np.testing.assert_allclose(mask.grid.affine, image.grid.affine, atol=1e-6)
    assert b"CANARY" not in (tmp_path / "m.nii").read_bytes()
    spec = DatasetSpec("d", tmp_path, "csv", ("MR",), {"background": 0, "x": 1}, ())
    case = CaseSpec("p", (tmp_path / "s",), tmp_path / "m.nii")
    assert set(load_case(spec, case).labels.counts()) == {0, 1}
    with pytest.raises(InputError, match="label maps are read as NIfTI"):
        read_label_map(tmp_path / "s")


def test_a_folder_of_images_lists_series_pairs_and_files_once(tmp_path, volume, save):
    write_series(tmp_path / "in" / "b series", volume)
    save("in/a.nii.gz", np.zeros((2, 3, 4)))
    for name in ("in/p.hdr", "in/p.img", "in/.hidden.nii.gz", "in/x.txt", "in/photo.JPG"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images(tmp_path / "in")] == ["a.nii.gz", "b series", "p.hdr", "photo.JPG"]
    assert list_images(tmp_path / "in" / "b series") == [tmp_path / "in" / "b series"]
    assert [mask_ending(p) for p in list_images(tmp_path / "in")] == [".nii.gz", ".nii.gz", ".hdr", ".png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in this folder"):
        list_images(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "shape", "total"), [("series_a", (35, 51, 32), 58.590), ("series_b", (36, 48, 35), 665.320)]
)
def test_real_series_agree_with_their_description(shared_data, name, shape, total):
    image = read_image(shared_data / "hippocampus_dicom" / name)
    assert image.grid.shape == shape
    assert image.grid.orientation == "LPS"
    assert image.grid.spacing_mm == (1.0, 1.0, 1.0)
    assert image.array.mean(dtype=np.float64) == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("codec", [None, "RLELossless"])
@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_random_damage_gives_an_image_or_one_line_and_a_cut_file_never_an_image(tmp_path, kind, codec):
    """In a process of its own: decoders of others are at work here, and a crash must be seen as one."""
    volume = np.random.default_rng(0).integers(0, 1000, (4, 40, 36)).astype(np.int16)
    if kind == "classic":
        path = write_series(tmp_path / "s", volume) / "1.dcm"  # the last slice: no gap would tell
    else:
        path = write_enhanced(tmp_path / "s" / "1.dcm", volume)
    if codec:
        found = pydicom.dcmread(path)
        found.compress(getattr(pydicom.uid, codec), generate_instance_uid=False)
        found.save_as(path)
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from medmamba.errors import MedmambaError\n"
        "from medmamba.images import read_image\n"
        "path = Path(sys.argv[1]); raw = path.read_bytes(); read_image(path.parent)\n"
        "rng = np.random.default_rng(7); lines = 0\n"
        "for number in range(50):\n"
        "    broken = bytearray(raw)\n"
        "    if number < 10: del broken[int(rng.integers(1, len(raw))):]\n"
        "    else:\n"
        "        for at in rng.integers(132, len(raw), int(rng.integers(1, 6))): broken[at] = rng.integers(256)\n"
        "    path.write_bytes(broken)\n"
        "    try:\n"
        "        read_image(path.parent)\n"
        "        assert number >= 10, len(broken)\n"
        "    except MedmambaError as error:\n"
        "        assert '\\n' not in str(error) and 'CANARY' not in str(error); lines += 1\n"
        "print(lines)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.splitlines()[-1]) > 10


def test_slices_of_two_patients_are_not_one_volume(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    for path in sorted(folder.iterdir())[:3]:
        changed(path, PatientID="CANARY-2")
    for path in sorted(folder.iterdir())[3:]:
        changed(path, PatientID="CANARY-1")
    message = refused(folder)
    assert "s: its slices are not one volume." in message
    assert "patient 1" in message
    assert "patient 2" in message


def test_values_behind_a_table_are_not_taken_as_they_are(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    table = pydicom.Dataset()
    table.ModalityLUTType = "HU"
    changed(folder / "0.dcm", ModalityLUTSequence=[table])
    assert "0.dcm: its values need a table (Modality LUT), which is not read." in refused(folder)


def test_positions_written_to_a_tenth_of_a_millimetre_are_even(tmp_path):
    folder, step = tmp_path / "s", 0.6249
    for k in range(40):
        write_slice(folder / f"{k}.dcm", np.full((6, 5), k, np.int16), (0, 0, round(step * k, 1)))
    image = read_image(folder)
    np.testing.assert_array_equal(image.array[0, 0, 0], np.arange(40))
    assert image.grid.spacing_mm[2] == pytest.approx(step, abs=0.005)


def test_a_compression_that_is_not_read_is_named(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    for path in folder.iterdir():
        found = pydicom.dcmread(path)
        found.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
        found.PixelData = pydicom.encaps.encapsulate([b"no picture"])
        found["PixelData"].VR = "OB"
        found.save_as(path)
    assert "its pixels are compressed as MPEG-4 AVC" in (message := refused(folder))
    assert message.endswith("which is not read. Export the series uncompressed.")
