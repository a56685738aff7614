"""The page on adding an image format is true: its example reads, writes, and refuses what is damaged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmamba.errors import InputError
from medmamba.geometry import Grid
from medmamba.images import (
    Format,
    files_of,
    list_images,
    mask_ending,
    read_image,
    read_label_map,
    register_format,
    write_image,
    written_files,
)
from medmamba.images.formats import FORMATS, format_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-an-image-format.md"


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The names that the page's blocks define; the table of formats is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    before = list(FORMATS)
    for block in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]:
        exec(compile(block.split("```")[0], PAGE.name, "exec"), found)
    yield found
    FORMATS[:] = before


def test_the_example_of_the_page_is_a_format_like_the_others(names, tmp_path):
    mask = tmp_path / "tumour.npv"
    assert read_label_map(mask).counts() == {1: 120}
    assert list_images(tmp_path) == files_of(mask) == written_files(mask) == [mask]
    assert mask_ending("a.npv") == ".npv"
    assert format_of(mask).holds_probabilities
    grid = Grid((4, 5, 6), np.array([[0, 2.0, 0, 5], [-1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]]))
    array = np.random.default_rng(0).random((3, 4, 5, 6), dtype=np.float32)
    write_image(tmp_path / "p.npv", array, like=grid)
    again = read_image(tmp_path / "p.npv")
    np.testing.assert_array_equal(again.array, array)
    assert again.grid == grid


def test_the_example_refuses_what_is_damaged(names, tmp_path):
    raw = (tmp_path / "tumour.npv").read_bytes()
    for content, words in (
        (raw[:200], "cut off"),
        (b"hello" + raw, "not a .npv file"),
        (raw.replace(b"(1, 4, 5, 6)", b"(9999, 9999, 9999, 9999)", 1), "above the limit"),
    ):
        (tmp_path / "bad.npv").write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_image(tmp_path / "bad.npv")


def test_an_ending_belongs_to_one_format(names):
    with pytest.raises(ValueError, match=r"\.npv is the ending of another format"):
        register_format(Format("another", (".npv",), names["npv"]))


def test_the_columns_say_where_masks_and_probabilities_go(tmp_path):
    assert [mask_ending(f"a{e}") for e in (".JPG", ".nhdr", ".mhd", ".nii.gz", ".PNG")] == [
        ".png", ".nrrd", ".mhd", ".nii.gz", ".PNG",
    ]  # fmt: skip
    assert [path.name for path in written_files("a.mhd")] == ["a.mhd", "a.zraw"]
    assert [path.name for path in written_files("A.IMG")] == ["A.HDR", "A.IMG"]
    assert [kind.name for kind in FORMATS if not kind.holds_probabilities] == ["flat image", "JPEG"]
    Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6)).save(tmp_path / "a.jpg")
    assert files_of(tmp_path / "a.jpg") == [tmp_path / "a.jpg"]
