"""RUN/report/dataset.html: all that was measured and planned is in it, and it needs no other file and no network."""

from __future__ import annotations

import base64
import html
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from medmamba.models.run_folder import RunFolder
from medmamba.planning.dataset_page import dataset_page, histogram, spread_over
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.folds import Fold


class Structure(HTMLParser):
    """Collects tags, links and text; complains about tags that are not closed."""

    EMPTY = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(text: str) -> Structure:
    page = Structure()
    page.feed(text)
    assert page.open == []
    return page


def test_the_page_of_a_run_needs_nothing_else_and_names_everything(small_run):
    text = (small_run / "report" / "dataset.html").read_text(encoding="utf-8")
    page = parsed(text)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", re.sub(r'="data:[^"]*"', "", text))
    assert page.tags.count("script") == 1  # that sorts tables
    run = RunFolder(small_run)
    fingerprint = run.read_fingerprint()
    for name in [*fingerprint.labels, *(case.case_id for case in fingerprint.cases)]:
        assert name == "background" or html.escape(name) in page.text
    for decision in [*run.read_plan().decisions, *run.read_plan().default.decisions]:
        assert decision.reason in page.text
    assert page.tags.count("img") == 4
    for heading in ("Warnings", "Plan", "Labels", "Cases", "Measures", "Folds", "Every decision"):
        assert heading in page.text
    for measure in ("size along i", "field of view along k", "foreground intensity of MRI", "volume of Anterior"):
        assert measure in page.text


def test_the_pictures_are_the_cases_with_coloured_outlines(small_run):
    text = (small_run / "report" / "dataset.html").read_text(encoding="utf-8")
    for code in re.findall(r"data:image/png;base64,([^\"]+)", text):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
        assert pixels.shape[2] == 3
        assert max(pixels.shape) == 320
        assert (pixels == (0xFF, 0xB0, 0x00)).all(axis=2).any()
        assert pixels.std() > 10


def test_names_from_the_dataset_cannot_put_tags_into_the_page(small_run):
    run = RunFolder(small_run)
    fingerprint, plan = run.read_fingerprint(), run.read_plan()
    bad = fingerprint.model_copy(update={"dataset_name": "<script>alert(1)</script>\x1b[2J"})
    page = dataset_page(plan, bad, [Fold(train=[], val=[])], ["<img src=http://x>"], {})
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert isinstance(bad, Fingerprint)


def test_cases_are_spread_over_the_dataset():
    assert spread_over(list("abc"), 5) == list("abc")
    assert spread_over([str(n) for n in range(101)], 3) == ["0", "50", "100"]


def test_a_value_that_all_cases_share_is_one_number():
    same = histogram([2.5, 2.5], "spacing", "mm")
    assert (same.note, list(same.counts)) == ("2.5 mm", [])
    drawn = histogram([1, 2, 2, 9], "size", "voxels")
    assert (len(drawn.counts), drawn.note, drawn.low, drawn.high) == (20, "median 2 voxels", 1, 9)
