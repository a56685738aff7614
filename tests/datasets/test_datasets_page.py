"""The page on datasets shows descriptions that are read as it says."""

import re
from pathlib import Path

import pytest

from medmamba.datasets import read_dataset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "datasets.md"
BLOCKS = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("number", "layout"), [(0, "decathlon"), (1, "nnunet"), (2, "csv")])
def test_each_description_of_the_page_is_understood(tmp_path, number, layout):
    assert len(BLOCKS) == 3
    (tmp_path / "dataset.json").write_text(BLOCKS[number], encoding="utf-8")
    (tmp_path / "cases.csv").write_text("image_0,image_1,label\na.nii.gz,b.nii.gz,c.nii.gz\n", encoding="utf-8")
    spec = read_dataset(tmp_path, strict=False)
    assert spec.layout == layout
    if layout == "decathlon":
        assert spec.problems == ()
        assert spec.cases[1].group == "patient 3"
    if layout == "nnunet":
        assert spec.ignore == 4
        assert spec.regions["core"] == (2, 3)
    if layout == "csv":
        assert spec.cases[0].label == tmp_path / "c.nii.gz"
