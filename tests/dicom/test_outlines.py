"""Outlines of masks, read by scikit-image, matplotlib and Pillow, each by a rule of its own: the masks again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw
from scipy.ndimage import label
from skimage.measure import grid_points_in_poly

from medmamba.dicom.outlines import corners_of, filled, outlines_of

CORNERS = np.ones((3, 3))
NESTED = """
    .............
    .###########.
    .#.........#.
    .#.#######.#.
    .#.#.....#.#.
    .#.#.#.#.#.#.
    .#.#..#..#.#.
    .#.#.....#.#.
    .#.#######.#.
    .#.........#.
    .###########.
    .............
"""
TWO_HOLES_IN_A_ROW = """
    ##########
    #..###.###
    ###..#.#.#
    ##########
"""


def drawn(text):
    return np.array([[char == "#" for char in line.strip()] for line in text.split()])


def noise(seed, rows, columns, share):
    return np.random.default_rng(seed).random((rows, columns)) < share


def centres_inside(polygon, shape):
    centres = np.indices(shape).reshape(2, -1).T
    return Outline(polygon).contains_points(centres).reshape(shape)


def rounded_and_filled_with_the_border(polygon, shape):
    """How programs read that draw contours in pixels, as cv2.fillPoly and Pillow do."""
    picture = Image.new("1", shape)
    ImageDraw.Draw(picture).polygon([(round(x), round(y)) for x, y in polygon.tolist()], fill=1, outline=1)
    return np.array(picture).T


READERS = {
    "matplotlib": centres_inside,
    "scikit-image": lambda polygon, shape: grid_points_in_poly(shape, polygon).astype(bool),
    "Pillow": rounded_and_filled_with_the_border,
    "ours": lambda polygon, shape: filled(polygon, shape),
}


@settings(max_examples=60, deadline=None)
@given(st.builds(noise, st.integers(0, 2**32 - 1), st.integers(1, 13), st.integers(1, 13), st.floats(0.05, 1.0)))
@example(drawn(NESTED))
@example(drawn(TWO_HOLES_IN_A_ROW))
@example(np.eye(5, dtype=bool))
@example(~np.eye(5, dtype=bool))
def test_every_reader_finds_exactly_the_mask_and_no_voxel_twice(mask):
    polygons = outlines_of(mask)
    for name, read in READERS.items():
        times = sum((read(polygon, mask.shape).astype(int) for polygon in polygons), np.zeros(mask.shape, int))
        assert np.array_equal(times, mask), name


@settings(max_examples=60, deadline=None)
@given(st.builds(noise, st.integers(0, 2**32 - 1), st.integers(1, 13), st.integers(1, 13), st.floats(0.05, 1.0)))
@example(drawn(NESTED))
def test_an_island_is_one_outline_and_a_hole_costs_four_points(mask):
    polygons = outlines_of(mask)
    assert len(polygons) == label(mask)[1]
    holes = label(np.pad(~mask, 1, constant_values=True), CORNERS)[1] - 1
    assert sum(map(len, polygons)) == corners_of(mask[..., None]) + 4 * holes


def test_outlines_run_along_the_borders_of_the_voxels():
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:7] = True
    (polygon,) = outlines_of(mask)
    assert sorted(map(tuple, polygon.round(1).tolist())) == [(1.5, 2.5), (1.5, 6.5), (4.5, 2.5), (4.5, 6.5)]
    assert 0 < np.abs(polygon - polygon.round(1)).max() < 0.01
    (x, y) = polygon.T
    assert (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == pytest.approx(12, abs=0.1)


def test_a_bridge_is_walked_forth_and_back_over_the_same_points():
    mask = np.ones((7, 7), bool)
    mask[3, 3:5] = False  # a hole of two voxels
    (polygon,) = outlines_of(mask)
    points, counts = np.unique(polygon, axis=0, return_counts=True)
    twice = points[counts == 2]
    assert len(polygon) == 4 + 4 + 4
    assert len(twice) == 2
    assert twice[0, 1] == twice[1, 1]


@settings(max_examples=30, deadline=None)
@given(st.builds(noise, st.integers(0, 2**32 - 1), st.integers(6, 13), st.integers(6, 13), st.floats(0.4, 1.0)))
def test_no_outline_has_more_points_than_allowed(mask):
    polygons = outlines_of(mask, 24)
    assert max(map(len, polygons), default=0) <= 24
    times = sum((filled(polygon, mask.shape).astype(int) for polygon in polygons), np.zeros(mask.shape, int))
    assert np.array_equal(times, mask)
