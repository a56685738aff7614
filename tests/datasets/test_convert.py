"""Datasets written in another layout: the same voxels, labels and grids come back, or no folder at all."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medmamba.cli.main import run as medmamba
from medmamba.datasets import check_dataset, convert_dataset, load_case, read_dataset
from medmamba.errors import InputError, InputErrors


@pytest.fixture
def decathlon(save, tmp_path):
    """Two cases of two channels in 4D files, labels 0, 3 and 200."""

    def make(**changes: object) -> Path:
        rng = np.random.default_rng(1)
        pairs = []
        for number in range(2):
            name = f"p{number}.nii.gz"
            save(f"data/imagesTr/{name}", rng.integers(-900, 900, (6, 7, 5, 2)).astype(np.int16), descrip=b"PHI_CANARY")
            save(f"data/labelsTr/{name}", rng.choice([0, 3, 200], size=(6, 7, 5)).astype(np.uint8))
            pairs.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
        save("data/imagesTs/t.nii.gz", rng.normal(size=(6, 7, 5, 2)).astype(np.float32))
        description = {
            "name": "D",
            "licence": "CC0",
            "modality": {"0": "FLAIR", "1": "T1"},
            "labels": {"0": "background", "3": "oedema", "200": "tumour"},
            "training": pairs,
            "test": ["imagesTs/t.nii.gz"],
            **changes,
        }
        (tmp_path / "data/dataset.json").write_text(json.dumps(description), encoding="utf-8")
        return tmp_path / "data"

    return make


def same(first: Path, second: Path, values: dict[int, int]) -> None:
    """Both datasets hold the same voxels on the same grids, with labels exchanged by ``values``."""
    a, b = read_dataset(first), read_dataset(second)
    assert [case.case_id for case in a.cases] == [case.case_id for case in b.cases]
    assert a.channels == b.channels
    for x, y in zip(a.cases, b.cases, strict=True):
        (image, labels), (image2, labels2) = load_case(a, x), load_case(b, y)
        np.testing.assert_array_equal(image.array, image2.array)
        assert image.grid == image2.grid
        np.testing.assert_array_equal(np.vectorize(values.get)(labels.array), labels2.array)


def test_a_decathlon_folder_becomes_an_nnunet_folder_and_comes_back(decathlon, tmp_path):
    folder = decathlon()
    there = convert_dataset(folder, tmp_path / "Dataset001_D", "nnunet", workers=2)
    assert there.values == {0: 0, 3: 1, 200: 2}
    written = sorted(str(p.relative_to(there.folder)) for p in there.folder.rglob("*") if p.is_file())
    assert written == [
        "dataset.json",
        *(f"imagesTr/p{n}_000{c}.nii.gz" for n in range(2) for c in range(2)),
        "imagesTs/t_0000.nii.gz",
        "imagesTs/t_0001.nii.gz",
        "labelsTr/p0.nii.gz",
        "labelsTr/p1.nii.gz",
    ]
    description = json.loads((there.folder / "dataset.json").read_text(encoding="utf-8"))
    assert description["channel_names"] == {"0": "FLAIR", "1": "T1"}
    assert description["labels"] == {"background": 0, "oedema": 1, "tumour": 2}
    assert (description["numTraining"], description["file_ending"]) == (2, ".nii.gz")
    assert nib.load(there.folder / "imagesTr/p0_0000.nii.gz").get_data_dtype() == np.int16
    assert b"CANARY" not in b"".join(nib.load(p).header.binaryblock for p in there.folder.rglob("*.nii.gz"))
    same(folder, there.folder, there.values)
    back = convert_dataset(there.folder, tmp_path / "back", "decathlon")
    same(there.folder, back.folder, back.values)
    assert read_dataset(back.folder).licence == "CC0"
    assert len(read_dataset(back.folder).test) == 1


def test_masks_keep_the_header_geometry_bit_for_bit(decathlon, tmp_path):
    folder = decathlon()
    convert_dataset(folder, tmp_path / "out", "nnunet")
    a, b = nib.load(folder / "labelsTr/p0.nii.gz"), nib.load(tmp_path / "out/labelsTr/p0.nii.gz")
    assert a.affine.tobytes() == b.affine.tobytes()
    for field in ("qform_code", "sform_code", "quatern_b", "srow_x", "xyzt_units"):
        assert a.header[field].tobytes() == b.header[field].tobytes()


def test_regions_and_ignore_survive_and_ignore_comes_last(save, tmp_path):
    rng = np.random.default_rng(0)
    save("raw/imagesTr/a_0000.nii.gz", rng.normal(size=(6, 7, 5)).astype(np.float32))
    save("raw/labelsTr/a.nii.gz", rng.choice([0, 1, 4, 2], size=(6, 7, 5)).astype(np.uint8))
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "whole": [1, 4], "core": [4], "ignore": 2},
        "regions_class_order": [1, 4],
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "raw/dataset.json").write_text(json.dumps(description))
    (tmp_path / "raw/splits_final.json").write_text(json.dumps([]))
    done = convert_dataset(tmp_path / "raw", tmp_path / "out", "nnunet")
    assert done.values == {0: 0, 1: 1, 4: 2, 2: 3}
    written = json.loads((tmp_path / "out/dataset.json").read_text())
    assert written["labels"] == {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    assert written["regions_class_order"] == [1, 2]
    same(tmp_path / "raw", tmp_path / "out", done.values)
    with pytest.raises(InputError, match="the Decathlon layout has no regions"):
        convert_dataset(tmp_path / "raw", tmp_path / "out2", "decathlon")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("layout", ["nnunet", "decathlon"])
def test_pictures_stay_flat(tmp_path, layout):
    folder = tmp_path / "pictures"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / "imagesTr/a.png")
    Image.fromarray(rng.choice([0, 255], (9, 12)).astype(np.uint8)).save(folder / "labelsTr/a.png")
    description = {
        "modality": {"0": "R", "1": "G", "2": "B"},
        "labels": {"0": "background", "1": "nucleus"},
        "training": [{"image": "imagesTr/a.png", "label": "labelsTr/a.png"}],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    done = convert_dataset(folder, tmp_path / "out", layout)
    same(folder, done.folder, done.values)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "out/labelsTr/a.png")))) == {0, 1}


def test_a_damaged_case_leaves_no_folder_and_all_problems_are_told(decathlon, tmp_path):
    folder = decathlon()
    for name in ("imagesTr/p0.nii.gz", "labelsTr/p1.nii.gz"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(InputErrors) as caught:
        convert_dataset(folder, tmp_path / "out", "nnunet")
    assert len(caught.value.args) - 1 == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_nothing_that_exists_is_written_over(decathlon, tmp_path):
    folder = decathlon()
    with pytest.raises(InputError, match="exists already"):
        convert_dataset(folder, folder, "nnunet")
    with pytest.raises(InputError, match="Unknown layout 'nnunetv1'"):
        convert_dataset(folder, tmp_path / "out", "nnunetv1")


def test_lists_of_annotated_labels_are_kept_or_refused(decathlon, tmp_path):
    folder = decathlon()
    description = json.loads((folder / "dataset.json").read_text())
    description["training"][0] |= {"annotated": ["tumour", "oedema"], "group": "g"}
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="no per-case lists of annotated labels"):
        convert_dataset(folder, tmp_path / "out", "nnunet")
    convert_dataset(folder, tmp_path / "out", "decathlon")
    case = read_dataset(tmp_path / "out").cases[0]
    assert (case.annotated, case.group) == (("tumour", "oedema"), "g")


@pytest.mark.parametrize("name", ["spleen_ct_sample", pytest.param("ms_lesion", marks=pytest.mark.slow)])
def test_real_datasets_survive_the_round_trip(shared_data, tmp_path, name):
    there = convert_dataset(shared_data / name, tmp_path / "nnunet", "nnunet")
    back = convert_dataset(there.folder, tmp_path / "back", "decathlon")
    hashes = [
        [(c.image_sha256, c.label_sha256) for c in check_dataset(folder).cases]
        for folder in (shared_data / name, there.folder, back.folder)
    ]
    assert hashes[0] == hashes[1] == hashes[2]


def test_patients_stay_together_and_label_maps_of_test_cases_are_converted(decathlon, save, tmp_path):
    folder = decathlon()
    facts = json.loads((folder / "dataset.json").read_text())
    for number in range(2, 6):
        name = f"p{number}.nii.gz"
        for place in ("imagesTr", "labelsTr"):
            (folder / place / name).write_bytes((folder / place / f"p{number % 2}.nii.gz").read_bytes())
        facts["training"].append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    for number, entry in enumerate(facts["training"]):
        entry["patient"] = f"x{number // 2}"
    (folder / "dataset.json").write_text(json.dumps(facts))
    save("data/labelsTs/t.nii.gz", np.full((6, 7, 5), 3, np.uint8))
    spec = read_dataset(convert_dataset(folder, tmp_path / "out", "nnunet").folder)
    assert sorted(sorted(validated) for _, validated in spec.splits) == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]
    assert load_case(spec, spec.test[0]).labels.counts() == {1: 6 * 7 * 5}
    assert spec.warnings == ()
    back = read_dataset(convert_dataset(folder, tmp_path / "back", "decathlon").folder)
    assert [case.group for case in back.cases] == ["x0", "x0", "x1", "x1", "x2", "x2"]
    assert [case.label for case in back.test] == [tmp_path / "back/labelsTs/t.nii.gz"]


def test_what_is_accepted_on_request_is_converted(decathlon, save, tmp_path, capsys):
    folder = decathlon()
    array = np.random.default_rng(0).normal(size=(6, 7, 5, 2)).astype(np.float32)
    array[0, 0, 0] = np.nan
    save("data/imagesTr/p0.nii.gz", array)
    with pytest.raises(InputErrors, match="NaN or infinite"):
        convert_dataset(folder, tmp_path / "out", "nnunet")
    with pytest.raises(SystemExit, match="0"):
        medmamba(["convert", "dataset", str(folder), "-o", str(tmp_path / "out"), "--nonfinite", "zero"])
    spec = read_dataset(tmp_path / "out")
    assert (load_case(spec, spec.cases[0]).image.array[:, 0, 0, 0] == 0).all()
