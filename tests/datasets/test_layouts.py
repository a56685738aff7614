"""nnU-Net folders and tables of paths: read as they lie, nothing copied, each fault named."""

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_problems import problems_of

from medmamba.datasets import check_dataset, load_case, read_dataset
from medmamba.errors import InputError, InputErrors
from medmamba.geometry import Reorient
from medmamba.images import ReadOptions, write_label_map


@pytest.fixture
def nnunet(save, tmp_path):
    """Makes an nnU-Net folder of two channels; ``changes`` replace keys of dataset.json."""

    def make(count: int = 3, values: tuple[int, ...] = (0, 1, 2), channels: int = 2, **changes: object) -> Path:
        rng = np.random.default_rng(1)
        for number in range(count):
            for channel in range(channels):
                name = f"raw/imagesTr/la_{number:03d}_{channel:04d}.nii.gz"
                save(name, rng.normal(size=(6, 7, 5)).astype(np.float32))
            save(f"raw/labelsTr/la_{number:03d}.nii.gz", rng.choice(values, size=(6, 7, 5)).astype(np.uint8))
        description = {
            "channel_names": {str(n): f"MR{n}" for n in range(channels)},
            "labels": {"background": 0, "atrium": 1, "ventricle": 2},
            "numTraining": count,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "os.system",
            **changes,
        }
        (tmp_path / "raw/dataset.json").write_text(json.dumps(description), encoding="utf-8")
        return tmp_path / "raw"

    return make


def test_an_nnunet_folder_is_read_as_it_lies(nnunet):
    report = check_dataset(nnunet())
    spec = report.spec
    assert (spec.layout, spec.name) == ("nnunet", "raw")
    assert spec.channels == ("MR0", "MR1")
    assert [case.case_id for case in spec.cases] == ["la_000", "la_001", "la_002"]
    image, labels = load_case(spec, spec.cases[1])
    assert image.array.shape == (2, 6, 7, 5)
    assert set(labels.counts()) == {0, 1, 2}
    assert report.warnings == ()


def test_missing_extra_and_gap_channels_are_named_together(nnunet, save):
    folder = nnunet(4, numTraining=5)
    (folder / "imagesTr/la_000_0001.nii.gz").rename(folder / "imagesTr/la_000_0002.nii.gz")
    (folder / "imagesTr/la_001_0000.nii.gz").unlink()
    save("raw/imagesTr/la_002_0002.nii.gz", np.ones((6, 7, 5)))
    (folder / "labelsTr/la_003.nii.gz").unlink()
    (folder / "imagesTr/.DS_Store").write_text("")
    (folder / "imagesTr/notes.txt").write_text("")
    save("raw/labelsTr/orphan.nii.gz", np.ones((6, 7, 5)))
    message = problems_of(check_dataset, folder)
    for line in (
        "la_000: channel 1 missing: no la_000_0001.nii.gz in imagesTr",
        "la_000: channel 2 in imagesTr, but dataset.json names channels 0 to 1",
        "la_001: channel 0 missing: no la_001_0000.nii.gz",
        "la_002: channel 2 in imagesTr",
        "la_003: labelsTr/la_003.nii.gz: no such file",
        "numTraining is 5, but there are 1 training cases",
    ):
        assert line in message, message
    warnings = read_dataset(folder, strict=False).warnings
    assert any("imagesTr: 2 other file(s), such as hidden and backup" in w and ".DS_Store" in w for w in warnings)
    assert any("labelsTr: 4 image file(s) belong to no case" in w and "la_000" in w for w in warnings)


def test_channels_on_different_grids_are_refused(nnunet, save):
    folder = nnunet(1)
    save("raw/imagesTr/la_000_0001.nii.gz", np.ones((6, 7, 4), np.float32))
    assert "la_000_0001.nii.gz differ in shape: (6, 7, 5) and (6, 7, 4)" in problems_of(check_dataset, folder)


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_regions_and_the_ignore_label_are_understood(nnunet):
    spec = check_dataset(nnunet(values=(0, 1, 2, 3, 4), labels=REGIONS, regions_class_order=[1, 2, 3])).spec
    assert spec.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert spec.region_order == (1, 2, 3)
    assert spec.ignore == 4
    assert spec.labels == {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3}
    assert spec.values == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"labels": REGIONS},
            "regions_class_order: []: 3 different values are needed, one for each of whole, core, enhancing",
        ),
        ({"labels": REGIONS, "regions_class_order": [1, 2, 9]}, "holds values that are in no region"),
        ({"labels": {"background": 0, "a": [1, True]}}, "'a' = [1, True]: whole numbers above 0 are needed"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "'ignore' = 1: another label has this value"),
        ({"labels": {"background": 0, "a": 1, "ignore": "x"}}, "'ignore' has the value 'x'"),
        ({"file_ending": ".xyz"}, "file_ending: '.xyz' is not that of a known kind of image"),
        ({"channel_names": {"0": "A", "2": "B"}}, "channels are numbered 0, 2"),
        ({"numTraining": True}, "numTraining: input should be a valid integer"),
        ({"dataset": {"../x": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}}, "slash or backslash"),
        ({"dataset": {"x": {"images": ["/etc/a.nii.gz"], "label": "b.nii.gz"}}}, "leads out of the dataset's folder"),
        ({"dataset": {"x": {"images": ["$HOME/a.nii.gz"]}}}, "a training case without a label map"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(nnunet, changes, words):
    assert words in problems_of(read_dataset, nnunet(1, **changes))


def test_the_explicit_list_of_cases_is_followed(nnunet, save, tmp_path):
    folder = nnunet(2)
    entry = {"images": [f"imagesTr/la_000_000{n}.nii.gz" for n in range(2)], "label": "labelsTr/la_000.nii.gz"}
    again = json.loads((folder / "dataset.json").read_text()) | {"dataset": {"patient 7": entry}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(again), encoding="utf-8")
    report = check_dataset(folder)
    assert [case.case_id for case in report.cases] == ["patient 7"]
    again["dataset"]["patient 7"]["images"] = ["../raw/" + name for name in entry["images"]]
    (folder / "dataset.json").write_text(json.dumps(again), encoding="utf-8")
    assert "leads out" in problems_of(read_dataset, folder)
    assert len(check_dataset(read_dataset(folder, allow_outside=True)).cases) == 1


def test_a_split_file_is_read_and_a_leaking_one_is_refused(nnunet):
    folder = nnunet(3)
    (folder / "splits_final.json").write_text(
        json.dumps([{"train": ["la_000", "la_001"], "val": ["la_002"]}]), encoding="utf-8"
    )
    assert read_dataset(folder).splits == ((("la_000", "la_001"), ("la_002",)),)
    wrong = [{"train": ["la_000", "la_001"], "val": ["la_001", "gone"]}, {"train": [], "val": ["la_000"]}]
    (folder / "splits_final.json").write_text(json.dumps(wrong), encoding="utf-8")
    message = problems_of(read_dataset, folder)
    assert "fold 0: 1 unknown case(s), the first is gone" in message
    assert "fold 0: la_001 is in train and in val" in message
    assert "fold 1: train or val is empty" in message


def test_a_case_in_training_and_test_is_a_leak(nnunet, save):
    folder = nnunet(1)
    for channel in range(2):
        save(f"raw/imagesTs/la_000_{channel:04d}.nii.gz", np.ones((6, 7, 5)))
    assert "la_000: in imagesTr and in imagesTs" in problems_of(read_dataset, folder)


# Tables


def table(folder: Path, text: str, **description: object) -> Path:
    (folder / "cases.csv").write_text(text, encoding="utf-8")
    content = {"channel_names": {"0": "A", "1": "B"}, "labels": {"background": 0, "x": 1, "y": 2}, **description}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "cases.csv"


def test_a_table_of_paths_is_a_dataset(nnunet):
    folder = nnunet(3)
    text = "\ufeffcase_id;image_0;image_1;label;group;split;annotated\n"
    for number in range(3):
        files = [f"imagesTr/la_{number:03d}_000{c}.nii.gz" for c in range(2)]
        text += f"p{number};{files[0]};{files[1]};labelsTr/la_{number:03d}.nii.gz;g{number // 2};"
        text += "test;\n" if number == 2 else 'train;"x; y"\n'
    spec = check_dataset(table(folder, text)).spec
    assert [case.case_id for case in spec.cases] == ["p0", "p1"]
    assert [case.case_id for case in spec.test] == ["p2"]
    assert spec.cases[0].group == "g0"
    assert spec.cases[0].annotated == ("x", "y")
    assert read_dataset(table(folder, text, cases="cases.csv").parent).cases == spec.cases


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("case_id,label\na,b\n", "no column image or image_0 (found: case_id, label)"),
        ("image,image\na,b\n", "two columns have the same name"),
        ("image,label\na.nii.gz\n", "line 2: 1 fields, but 2 columns"),
        ("image,label\na.nii.gz,\n", "line 2: a: a training case without a label map"),
        ("image,label,split\na.nii.gz,b.nii.gz,val\n", "line 2: split is 'val'"),
        ("image,label\na.nii.gz,b.nii.gz\nx/a.nii.gz,b.nii.gz\n", "a: the case name occurs twice"),
        ("image,label,annotated\na.nii.gz,b.nii.gz,x;z\n", "the annotated label 'z' is not declared"),
        ("image,label\n", "no training case"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path, text, words):
    assert words in problems_of(read_dataset, table(tmp_path, text))


def test_only_a_table_named_by_the_user_may_lead_out_of_its_folder(nnunet, tmp_path):
    folder = nnunet(1)
    other = tmp_path / "list"
    other.mkdir()
    line = ",".join(
        f"../raw/{n}" for n in ("imagesTr/la_000_0000.nii.gz", "imagesTr/la_000_0001.nii.gz", "labelsTr/la_000.nii.gz")
    )
    path = table(other, f"image_0,image_1,label\n{line}\n", cases="cases.csv")
    assert folder.is_dir()
    assert len(check_dataset(path).cases) == 1
    assert "leads out of the dataset's folder" in problems_of(read_dataset, other)


# Labels stored with other axes


def test_a_label_map_stored_with_other_axes_is_turned_on_request_without_loss(nnunet):
    folder = nnunet(1)
    spec = read_dataset(folder)
    _, truth = load_case(spec, spec.cases[0])
    turn = Reorient(truth.grid.shape, (2, 0, 1), (True, False, True))
    write_label_map(
        folder / "labelsTr/la_000.nii.gz", turn.apply(truth.array[None])[0], like=turn.grid_after(truth.grid)
    )
    assert "They are the same voxels stored in another order" in problems_of(check_dataset, folder)
    image, labels = load_case(spec, spec.cases[0], ReadOptions(match_labels=True))
    np.testing.assert_array_equal(labels.array, truth.array)
    assert labels.grid == image.grid
    assert "axes were reordered to the image's" in labels.warnings[-1]


def test_problems_of_a_description_and_of_its_files_come_together(nnunet):
    folder = nnunet(2, numTraining=3)
    (folder / "labelsTr/la_001.nii.gz").write_bytes(b"")
    with pytest.raises(InputErrors) as caught:
        check_dataset(folder)
    assert len(caught.value.args) - 1 == 2


ODD = [
    None,
    True,
    -1,
    3.5,
    1e400,
    "",
    "\0",
    "a/b",
    "..",
    "x" * 300,
    "\x1b[31m",
    [],
    [None],
    {},
    {"0": None},
    [[["a"]]],
    "0",
    2**70,
]


def places(value, path=()):
    """The path of every node of a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def with_odd(value, path, odd):
    if not path:
        return odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_odd(value[path[0]], path[1:], odd)
    return copy


def test_any_odd_value_anywhere_in_a_description_is_read_or_refused_in_lines(nnunet, save):
    folder = nnunet(1)
    save("raw/imagesTr/la_000.nii.gz", np.random.default_rng(0).normal(size=(6, 7, 5, 2)).astype(np.float32))
    explicit = {
        "images": ["imagesTr/la_000_0000.nii.gz", "imagesTr/la_000_0001.nii.gz"],
        "label": "labelsTr/la_000.nii.gz",
    }
    first = json.loads((folder / "dataset.json").read_text())
    descriptions = [
        {**first, "labels": REGIONS, "regions_class_order": [1, 2, 3], "dataset": {"p": explicit}},
        {
            "name": "D",
            "modality": {"0": "A", "1": "B"},
            "labels": {"0": "background", "1": "x", "2": "y"},
            "ignore": 7,
            "numTraining": 1,
            "training": [
                {"image": "imagesTr/la_000.nii.gz", "label": explicit["label"], "annotated": ["x"], "group": "g"}
            ],
            "test": ["a.nii.gz", {"image": ["b.nii.gz"]}],
        },
    ]
    refused = 0
    for description in descriptions:
        for path in places(description):
            for odd in ODD:
                text = json.dumps(with_odd(description, path, odd)).replace("Infinity", "1e400")
                (folder / "dataset.json").write_text(text)
                try:
                    check_dataset(folder, workers=1)
                except InputError as error:
                    refused += 1
                    for line in str(error).replace(str(folder), "raw").splitlines():
                        assert line.isprintable(), line
                        assert len(line) <= 300, line
    assert refused > 300


def test_file_names_that_paint_terminals_or_are_very_long_are_named_in_one_short_line(nnunet):
    folder = nnunet(2, channels=1)
    for old, new in (("la_000", "a\x1b[31m\nb"), ("la_001", "y" * 190)):
        (folder / f"imagesTr/{old}_0000.nii.gz").rename(folder / f"imagesTr/{new}_0000.nii.gz")
        (folder / f"labelsTr/{old}.nii.gz").rename(folder / f"labelsTr/{new}.nii.gz")
    (folder / f"labelsTr/{'y' * 190}.nii.gz").write_bytes(b"")
    message = problems_of(check_dataset, folder)
    assert "\x1b" not in message
    assert "imagesTr: a\\x1b[31m\\nb: the case name holds control characters" in message
    assert f"{'y' * 40}…{'y' * 19}: labelsTr/" in message
    assert "the file is empty" in message


@pytest.mark.parametrize("channels", [1, 2])
def test_a_folder_of_nnunet_v1_is_read(nnunet, channels):
    folder = nnunet(3, channels=channels)
    names = [f"la_{number:03d}" for number in range(3)]
    old = {
        "modality": {str(n): f"MR{n}" for n in range(channels)},
        "labels": {"0": "background", "1": "atrium", "2": "ventricle"},
        "numTraining": 3,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(old))
    spec = read_dataset(folder)
    assert [case.case_id for case in spec.cases] == names
    assert (spec.channel_files, spec.warnings) == (channels, ())
    assert all(load_case(spec, case).image.channels == channels for case in spec.cases)
    second = nnunet(3, channels=channels, training=old["training"])
    assert (read_dataset(second).layout, len(read_dataset(second).cases)) == ("nnunet", 3)
    nnunet(3, channels=channels, training=[entry | {"fold": 0} for entry in old["training"]])
    with pytest.raises(InputError, match="fold and validation have no meaning"):
        read_dataset(folder)


def test_another_kind_of_file_is_named(nnunet):
    folder = nnunet(3, channels=1)
    (folder / "imagesTr" / "la_002_0000.nii.gz").rename(folder / "imagesTr" / "la_002_0000.nii")
    with pytest.raises(InputErrors, match=r"la_002_0000.nii is a .nii file, but file_ending is .nii.gz"):
        read_dataset(folder)
