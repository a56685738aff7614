"""Decathlon folders, healthy and damaged: all problems are reported in one pass, one line each."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_problems import problems_of

from medmamba.datasets import check_dataset, load_case, read_dataset
from medmamba.datasets.description import case_id_problem, check_ids
from medmamba.datasets.spec import CaseSpec
from medmamba.errors import InputError


@pytest.fixture
def dataset(save, tmp_path):
    """Makes a small dataset of ``count`` cases with labels 0, 1 and 5; ``changes`` replace keys of dataset.json."""

    def make(count: int = 4, **changes: object) -> Path:
        rng = np.random.default_rng(1)
        pairs = []
        for number in range(count):
            name = f"case_{number:03d}.nii.gz"
            save(f"data/imagesTr/{name}", rng.normal(size=(6, 7, 5)).astype(np.float32))
            save(f"data/labelsTr/{name}", rng.choice([0, 1, 5], size=(6, 7, 5)).astype(np.uint8))
            pairs.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        description = {
            "name": "Small",
            "licence": "CC0",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "liver", "5": "tumour"},
            "numTraining": count,
            "training": pairs,
            "test": [],
            **changes,
        }
        return rewrite(tmp_path / "data", description)

    return make


def rewrite(folder: Path, description: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(
        description if isinstance(description, str) else json.dumps(description), encoding="utf-8"
    )
    return folder


def changed(folder: Path, **changes: object) -> Path:
    return rewrite(folder, {**json.loads((folder / "dataset.json").read_text()), **changes})


def state_of(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_healthy_dataset_is_described_and_read(dataset):
    spec = read_dataset(dataset())
    assert (spec.name, spec.licence, spec.layout) == ("Small", "CC0", "decathlon")
    assert spec.channels == ("MRI",)
    assert spec.labels == {"background": 0, "liver": 1, "tumour": 5}
    assert spec.values == (0, 1, 5)
    assert [case.case_id for case in spec.cases] == ["case_000", "case_001", "case_002", "case_003"]
    image, labels = load_case(spec, spec.cases[0])
    assert image.array.shape == (1, 6, 7, 5)
    assert labels.array.shape == (6, 7, 5)
    assert set(labels.counts()) == {0, 1, 5}


def test_the_check_reads_each_case_once_and_gives_what_the_visitor_found(dataset):
    folder = dataset()
    before, progress = state_of(folder), []
    report = check_dataset(
        folder,
        workers=2,
        visit=lambda case, loaded: float(loaded.image.array.mean()),
        on_case=lambda *n: progress.append(n),
    )
    assert report.warnings == ()
    assert [case.case_id for case in report.cases] == ["case_000", "case_001", "case_002", "case_003"]
    spec = read_dataset(folder)
    assert [c.visited for c in report.cases] == [float(load_case(spec, c)[0].array.mean()) for c in spec.cases]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert state_of(folder) == before


def test_all_problems_of_all_cases_are_told_in_one_pass(dataset, save):
    folder = dataset(8, numTraining=9, test=["./imagesTr/case_000.nii.gz"])
    image, label = folder / "imagesTr", folder / "labelsTr"
    whole = (image / "case_000.nii.gz").read_bytes()
    (image / "case_000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (label / "case_001.nii.gz").unlink()
    wrong = np.zeros((6, 7, 5), np.uint8)
    wrong[2, 3, 4] = wrong[3, 3, 4] = 7
    save("data/labelsTr/case_002.nii.gz", wrong)
    save("data/labelsTr/case_003.nii.gz", np.ones((6, 7, 4), np.uint8))
    nan = np.ones((6, 7, 5), np.float32)
    nan[0, 0, 0] = np.nan
    save("data/imagesTr/case_004.nii.gz", nan)
    save("data/imagesTr/case_005.nii.gz", np.full((6, 7, 5), 3, np.int16))
    save("data/imagesTr/case_006.nii.gz", np.random.default_rng(0).normal(size=(6, 7, 5, 2)).astype(np.float32))
    save("data/imagesTr/case_007.nii.gz", nan * 0 + np.arange(5, dtype=np.float32), np.diag([1, 1, 1, 1.0]))
    before = state_of(folder)
    message = problems_of(check_dataset, folder)
    assert state_of(folder) == before
    for line in (
        "numTraining is 9, but 8 training cases are listed",
        "case_000: the case name occurs twice",
        "case_000: imagesTr/case_000.nii.gz: cut off: the packed data end in the middle",
        "case_001: labelsTr/case_001.nii.gz: no such file",
        "case_002: labelsTr/case_002.nii.gz: label value 7 in 2 voxel(s), the first at (2, 3, 4), is not declared",
        "case_003: image and label map differ in shape: (6, 7, 5) and (6, 7, 4)",
        "case_004: imagesTr/case_004.nii.gz: 1 voxels are NaN or infinite, the first at (0, 0, 0)",
        "case_005: imagesTr/case_005.nii.gz: every voxel is 3: the image is empty",
        "case_006: 2 channel(s) in imagesTr/case_006.nii.gz, but dataset.json names 1 (MRI)",
        "case_007: imagesTr/case_007.nii.gz",
        "DATA: 10 problems, in 8 of 8 cases. Nothing was written.",
    ):
        assert sum(line in found for found in message.splitlines()) == 1, f"{line}\n\n{message}"


def test_geometry_of_image_and_label_must_agree(dataset, save):
    folder = dataset(1)
    save("data/labelsTr/case_000.nii.gz", np.ones((6, 7, 5), np.uint8), np.diag([0.8, 1.25, 3, 1]))
    message = problems_of(check_dataset, folder)
    assert "case_000: image and label map differ in orientation: LSA and RAS" in message


def test_a_file_that_is_not_a_label_map_is_recognised(dataset, save):
    folder = dataset(1)
    save("data/labelsTr/case_000.nii.gz", np.arange(210, dtype=np.int16).reshape(6, 7, 5))
    message = problems_of(check_dataset, folder)
    assert message.count("is not declared (declared: 0, 1, 5)") == 3
    assert "204 more values are not declared. Check that this file is a label map." in message


def test_warnings_are_collected(dataset, save):
    folder = dataset(4)
    shutil.copy(folder / "imagesTr/case_000.nii.gz", folder / "imagesTr/case_003.nii.gz")
    save("data/imagesTr/stray.nii.gz", np.ones((2, 2, 2)))
    (folder / "imagesTr/._case_000.nii.gz").write_bytes(b"junk")
    save("data/labelsTr/case_001.nii.gz", np.zeros((6, 7, 5), np.uint8))
    save("data/labelsTr/case_002.nii.gz", np.ones((6, 7, 5), np.float32))
    save("data/labelsTr/case_003.nii.gz", np.ones((6, 7, 5), np.uint8))
    report = check_dataset(changed(folder, numTest=3))
    text = "\n".join(report.warnings)
    assert "imagesTr: 1 image file(s) belong to no case and are not used, the first is stray.nii.gz" in text
    assert "imagesTr: 1 other file(s), such as hidden and backup files, are not used, the first is ._case" in text
    assert "case_001: the label map is empty" in text
    assert "case_000, case_003: the same image under 2 names, with different label maps" in text
    assert "label 'tumour' (5) occurs in only 1 of 4 cases" in text
    assert "numTest is 3, but 0 test cases are listed" in text
    assert len(report.warnings) == 6


def test_a_dataset_without_any_foreground_is_refused(dataset, save):
    folder = dataset(1)
    save("data/labelsTr/case_000.nii.gz", np.zeros((6, 7, 5), np.uint8))
    assert "no label map holds any foreground" in problems_of(check_dataset, folder)


def test_a_label_that_occurs_nowhere_is_told(dataset):
    folder = changed(dataset(), labels={"0": "background", "1": "a", "5": "b", "9": "spleen"})
    assert "label 'spleen' (9) occurs in no case" in "\n".join(check_dataset(folder).warnings)


def test_missing_folders_and_files_are_named(tmp_path, dataset):
    assert "no such folder" in problems_of(read_dataset, tmp_path / "nothing")
    assert "no dataset.json in this folder" in problems_of(read_dataset, tmp_path)
    folder = dataset()
    with pytest.raises(InputError, match=f"There is one in {folder}"):
        read_dataset(tmp_path)
    assert "a file, not a folder" in problems_of(read_dataset, folder / "dataset.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("{", "not JSON: expecting property name enclosed in double quotes at line 1, column 2"),
        ('{"labels": 1, "labels": 2}', "the key 'labels' occurs twice"),
        ('{"a": NaN}', "NaN is not a number in JSON"),
        ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 32 levels"),
        ("[1]", "an object with keys is needed"),
        ('{"labels": {}}', 'neither a list "training"'),
    ],
)
def test_json_is_read_strictly(tmp_path, text, words):
    (tmp_path / "dataset.json").write_text(text)
    assert words in problems_of(read_dataset, tmp_path)


def test_a_byte_order_mark_is_accepted_and_other_encodings_are_not(dataset):
    folder = dataset()
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text, encoding="utf-8-sig")
    assert read_dataset(folder).name == "Small"
    (folder / "dataset.json").write_text(text, encoding="utf-16")
    assert "not UTF-8 text" in problems_of(read_dataset, folder)


def test_a_huge_dataset_json_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_bytes(b" " * (11 * 2**20))
    assert "at most 10485760 are expected" in problems_of(read_dataset, tmp_path)


def test_faults_of_the_schema_are_told_with_their_place(dataset):
    message = problems_of(
        read_dataset, dataset(numTraining="four", training=[{"label": "x"}, {"image": 3}], labels=[1], test=[5])
    )
    for words in (
        "dataset.json: labels: input should be a valid dictionary",
        "dataset.json: numTraining: input should be a valid integer (found 'four')",
        "dataset.json: training[0].image: field required",
        "dataset.json: training[1].image",
        "dataset.json: test[0]",
    ):
        assert words in message, message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"0": "background", "1": True}}, "'1' has the value True; a whole number from 0 on is needed"),
        ({"labels": {"background": 0, "a": 1.0}}, "'a' has the value 1.0"),
        ({"labels": {"background": 0, "a": -1}}, "'a' has the value -1"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "'b' = 1: a name and a value may occur only once"),
        ({"labels": {"0": "a", "1": "a"}}, "'a' = 1: a name and a value may occur only once"),
        ({"labels": {"0": "background"}}, "only background is declared"),
        ({"labels": {"background": 1, "a": 2}}, "background must have the value 0, not 1"),
        ({"modality": {"0": "T1", "2": "T2"}}, "channels are numbered 0, 2; they must be 0 to 1"),
        ({"modality": {}}, "no channels"),
        ({"training": []}, "the training list is empty"),
        ({"training": [{"image": "./imagesTr/case_000.nii.gz"}]}, "a training case without a label map"),
        (
            {"training": [{"image": "../a.nii.gz", "label": "b.nii.gz"}]},
            "training[0]: the path '../a.nii.gz' leads out",
        ),
        ({"training": [{"image": "/etc/a.nii.gz", "label": "b.nii.gz"}]}, "leads out of the dataset's folder"),
        ({"training": [{"image": "a\n.nii.gz", "label": "b.nii.gz"}]}, "control characters"),
        ({"training": [{"image": "x" * 250 + ".nii.gz", "label": "b.nii.gz"}]}, "more than 200 bytes"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(dataset, changes, words):
    assert words in problems_of(read_dataset, dataset(1, **{"numTraining": None, **changes}))


def test_labels_and_channels_may_be_written_as_nnunet_writes_them(dataset):
    folder = dataset()
    description = json.loads((folder / "dataset.json").read_text())
    del description["modality"]
    spec = read_dataset(
        rewrite(folder, {**description, "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "t": 5}})
    )
    assert spec.channels == ("CT",)
    assert spec.labels == {"background": 0, "liver": 1, "t": 5}


def test_control_characters_cannot_paint_the_terminal(dataset):
    folder = changed(dataset(1), numTraining=None, training=[{"image": "a\x1b[31m.nii.gz", "label": "b.nii.gz"}])
    message = problems_of(read_dataset, folder)
    assert "\x1b" not in message
    assert "a\\x1b[31m" in message


@pytest.mark.parametrize("name", ["Jürgen 01", "-rf", "it's", 'a "b"', "日本", "x" * 200])
def test_unusual_names_are_fine(dataset, save, name):
    folder = dataset(1)
    for kind in ("images", "labels"):
        shutil.move(folder / f"{kind}Tr/case_000.nii.gz", folder / f"{kind}Tr/{name}.nii.gz")
    pair = {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
    assert check_dataset(changed(folder, training=[pair])).cases[0].case_id == name


def test_names_that_a_file_system_confuses_are_refused():
    problems: list[str] = []
    check_ids([CaseSpec(name, ()) for name in ("a", "B", "b", "\u00e9", "e\u0301", "a")], problems)
    assert [line.partition(".")[0] for line in problems] == [
        "b: the case name differs from B only in case or accents",
        "e\u0301: the case name differs from \u00e9 only in case or accents",
        "a: the case name occurs twice",
    ]
    assert case_id_problem("..") == "the case has no name"
    assert "slash" in case_id_problem("a/b")
    assert case_id_problem("case 1") is None


@pytest.mark.parametrize("name", ["hippocampus", "cardiac_lv", "ms_lesion", "spleen_ct_sample"])
def test_real_datasets_agree_with_their_tables(shared_data, name):
    import csv

    if name in ("hippocampus", "cardiac_lv"):
        few = set(sorted(p.name.split(".")[0] for p in (shared_data / name / "imagesTr").iterdir())[:20])
    else:
        few = None
    spec = read_dataset(shared_data / name)
    rows = {row["case"]: row for row in csv.DictReader((shared_data / name / "cases.csv").open())}
    assert {case.case_id for case in spec.cases} == set(rows)
    for case in spec.cases:
        if few is not None and case.case_id not in few:
            continue
        image, labels = load_case(spec, case)
        row = rows[case.case_id]
        shape = image.grid.shape if image.channels == 1 else (*image.grid.shape, image.channels)
        assert "x".join(map(str, shape)) == row["shape"]
        assert image.grid.orientation == row["orientation"]
        assert np.allclose(image.grid.spacing_mm, [float(mm) for mm in row["spacing"].split("x")], rtol=1e-3)
        assert image.array.min() == pytest.approx(float(row["min"]), rel=1e-5)
        assert image.array.mean(dtype=np.float64) == pytest.approx(float(row["mean"]), rel=1e-4)
        counts = labels.counts()
        for value in spec.labels.values():
            if value:
                assert counts[value] == int(row[f"voxels_{value}"])


@pytest.mark.parametrize("how", [{"ignore": 9}, {"labels": {"0": "background", "1": "a", "5": "b", "9": "ignore"}}])
def test_voxels_may_be_ignored_by_a_key_or_by_a_label_of_that_name(dataset, save, how):
    folder = changed(dataset(), **how)
    spec = read_dataset(folder)
    assert spec.ignore == 9
    assert list(spec.labels.values()) == [0, 1, 5]
    assert spec.values == (0, 1, 5, 9)
    save("data/labelsTr/case_000.nii.gz", np.full((6, 7, 5), 9, np.uint8))
    assert "case_000: the label map is empty" in "\n".join(check_dataset(folder).warnings)
    assert "a whole number above 0 that no label has" in problems_of(
        read_dataset, changed(folder, ignore=5, labels=LABELS)
    )


LABELS = {"0": "background", "1": "a", "5": "b"}


def test_a_label_that_was_said_not_to_be_annotated_must_not_occur(dataset):
    folder = dataset(1)
    pair = json.loads((folder / "dataset.json").read_text())["training"][0] | {"annotated": ["liver"]}
    message = problems_of(check_dataset, changed(folder, training=[pair]))
    assert "label 'tumour' in" in message
    assert "not among the labels annotated in this case" in message


def test_a_label_map_that_was_cropped_to_its_segment_is_put_in_its_place(dataset, save):
    folder = dataset(2)
    affine = load_case(read_dataset(folder), read_dataset(folder).cases[0]).image.grid.affine
    whole = np.zeros((6, 7, 5), np.uint8)
    whole[2:4, 3:6, 1:4] = 1
    part = affine.copy()
    part[:3, 3] += affine[:3, :3] @ (2, 3, 1)
    save("data/labelsTr/case_000.nii.gz", whole[2:4, 3:6, 1:4], part)
    save("data/labelsTr/case_001.nii.gz", whole)
    spec = read_dataset(folder)
    placed, same = (load_case(spec, case) for case in spec.cases)
    assert np.array_equal(placed.labels.array, same.labels.array)
    assert placed.labels.grid == placed.image.grid
    assert "the label map was padded with background" in placed.warnings[0]


@pytest.mark.parametrize(
    ("piece", "step"),
    [
        ((slice(0, 6), slice(0, 7), slice(0, 4)), (0, 0, 0)),  # an incomplete copy
        ((slice(0, 6), slice(0, 7), slice(0, 5)), (1, 0, 0)),  # the same shape, beside the image
        ((slice(1, 4), slice(1, 4), slice(1, 4)), (1.3, 1, 1)),  # between the voxels
        ((slice(1, 4), slice(1, 4), slice(1, 4)), (4, 1, 1)),  # sticks out
    ],
)
def test_a_label_map_of_another_box_is_refused(dataset, save, piece, step):
    folder = dataset(1)
    affine = load_case(read_dataset(folder), read_dataset(folder).cases[0]).image.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ step
    save("data/labelsTr/case_000.nii.gz", np.ones((6, 7, 5), np.uint8)[piece], affine)
    spec = read_dataset(folder)
    with pytest.raises(InputError, match="image and label map differ in"):
        load_case(spec, spec.cases[0])
