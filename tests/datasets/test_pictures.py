"""2D images as a dataset: RGB and grey, masks of 0 and 255, in both layouts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from dataset_problems import problems_of
from PIL import Image

from medmamba.datasets import check_dataset, load_case, read_dataset
from medmamba.images import read_image


@pytest.fixture
def pictures(tmp_path):
    """RGB pictures with masks of 0 and 255, in the layout of the Decathlon or of nnU-Net."""

    def make(layout: str, ending: str = ".png", values: tuple[int, int] = (0, 255)) -> Path:
        rng = np.random.default_rng(0)
        folder = tmp_path / layout
        (folder / "imagesTr").mkdir(parents=True)
        (folder / "labelsTr").mkdir()
        pairs = []
        for number in range(2):
            image = f"imagesTr/cell{number}{'_0000' if layout == 'nnunet' else ''}{ending}"
            label = f"labelsTr/cell{number}{'.png' if ending == '.jpg' else ending}"
            Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / image)
            Image.fromarray(rng.choice(values, (9, 12)).astype(np.uint8)).save(folder / label)
            pairs.append({"image": image, "label": label})
        colours = {"0": "R", "1": "G", "2": "B"}
        description = {"labels": {"background": 0, "nucleus": 1}, "numTraining": 2}
        if layout == "nnunet":
            description |= {"channel_names": colours, "file_ending": ending}
        else:
            description |= {"modality": colours, "training": pairs}
        (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize("layout", ["decathlon", "nnunet"])
@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_pictures_with_black_and_white_masks_are_a_dataset(pictures, layout, ending):
    report = check_dataset(pictures(layout, ending))
    assert [case.grid.spacing_mm for case in report.cases] == [None, None]
    assert report.cases[0].channels == 3
    assert set(report.cases[0].label_voxels) == {0, 1}
    assert sum("a mask of 0 and 255; 255 was taken for 1" in w for w in report.warnings) == 2


def test_jpeg_pictures_may_have_png_masks(pictures):
    assert len(check_dataset(pictures("decathlon", ".jpg")).cases) == 2


def test_other_grey_values_are_not_guessed(pictures):
    assert "label value 128 in" in problems_of(check_dataset, pictures("decathlon", values=(0, 128)))


def test_grey_pictures_in_a_colour_dataset_are_named(pictures):
    folder = pictures("decathlon")
    Image.open(folder / "imagesTr/cell0.png").convert("L").save(folder / "imagesTr/cell0.png")
    assert "cell0: imagesTr/cell0.png: grey, taken as three equal colours." in check_dataset(folder).warnings


def test_colours_in_a_grey_dataset_are_refused(pictures):
    folder = pictures("decathlon")
    facts = json.loads((folder / "dataset.json").read_text()) | {"modality": {"0": "grey"}, "channel_names": None}
    (folder / "dataset.json").write_text(json.dumps(facts))
    assert "cell0: 3 channel(s) in imagesTr/cell0.png, but dataset.json names 1 (grey)" in problems_of(
        check_dataset, folder
    )


def test_the_real_pictures_agree_with_their_table(shared_data):
    rows = {row["case"]: row for row in csv.DictReader((shared_data / "nuclei2018/cases.csv").open())}
    spec = read_dataset(shared_data / "nuclei2018")
    for case in spec.cases[::9]:
        image, labels = load_case(spec, case)
        row = rows[case.case_id]
        assert image.grid.shape == (int(row["width"]), int(row["height"]), 1)
        assert [round(float(c.mean()), 1) for c in image.array] == [float(row[f"mean_{c}"]) for c in "rgb"]
        assert labels.counts()[1] == int(row["pixels_1"])
    assert read_image(spec.cases[0].images[0]).grid.spacing_mm is None
