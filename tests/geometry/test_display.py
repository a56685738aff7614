"""How arrays are shown: a place in the patient is at one place of every picture, however its file is stored."""

import numpy as np
import pytest

from medmamba.geometry import Grid, Reorient, SpatialTrail, affine_from, all_reorientations
from medmamba.geometry.display import Display, axes_affine, pixels_of, slice_of

SHAPE = (6, 8, 10)
GRID = Grid(SHAPE, affine_from((1.0, 1.5, 2.0)))
SAGITTAL, CORONAL, AXIAL = range(3)


def beacon() -> np.ndarray:
    """Bright at the patient's right, anterior, superior corner."""
    volume = np.zeros(SHAPE)
    volume[-1, -1, -1] = 1
    return volume


def stored_as(volume, how, grid=GRID):
    trail = SpatialTrail(grid).then(Reorient(grid.shape, *how))
    return trail.apply(volume[None])[0], trail.grid


@pytest.mark.parametrize("how", all_reorientations())
def test_right_anterior_superior_is_at_its_place_in_every_plane(how):
    array, grid = stored_as(beacon(), how)
    display = Display(grid)
    shown = display.volume(array)
    assert display.spacing == (1.0, 1.5, 2.0)
    assert (display.plane, display.letters) == (AXIAL, ("RL", "AP", "SI"))
    for plane in range(3):
        picture = slice_of(shown, plane, 0)  # of the right, the anterior, the superior side
        assert np.argwhere(picture).tolist() == [[0, 0]], plane
    assert slice_of(shown, AXIAL, 0).shape == (8, 6)
    assert slice_of(shown, CORONAL, 0).shape == (10, 6)
    assert slice_of(shown, SAGITTAL, 0).shape == (10, 8)
    assert [display.number(plane, 0) for plane in range(3)] == [6, 8, 10]
    assert (display.volume(np.stack([array, 2 * array]))[1] == 2 * shown).all()


def test_an_oblique_grid_is_shown_along_its_nearest_axes():
    turned = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    array, grid = stored_as(
        beacon(), ((1, 2, 0), (True, False, True)), Grid(SHAPE, affine_from((1, 1, 1), direction=turned))
    )
    assert np.argwhere(Display(grid).volume(array)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("shape", "spacing", "plane"),
    [
        ((20, 20, 20), (1, 1, 1), AXIAL),
        ((20, 20, 20), (2, 1, 1), AXIAL),
        ((5, 20, 20), (4, 1, 1), SAGITTAL),
        ((20, 5, 20), (1, 4, 1), CORONAL),
        ((20, 20, 1), (1, 1, 1), AXIAL),
        ((20, 1, 20), (1, 1, 9), CORONAL),
        ((1, 20, 20), (1, 1, 9), SAGITTAL),
    ],
)
@pytest.mark.parametrize("how", [((0, 1, 2), (False,) * 3), ((2, 0, 1), (True, False, False))])
def test_a_single_picture_shows_the_plane_that_was_acquired(shape, spacing, plane, how):
    _, grid = stored_as(np.zeros(shape), how, Grid(shape, affine_from(spacing)))
    assert Display(grid).plane == plane


def test_without_an_affine_the_first_row_stays_on_top_and_nothing_is_reversed():
    photograph = np.arange(12).reshape(4, 3, 1)  # 4 wide, 3 high
    display = Display(Grid((4, 3, 1)))
    assert (display.plane, display.letters, display.spacing) == (AXIAL, ("", "", ""), (1.0, 1.0, 1.0))
    assert (slice_of(display.volume(photograph), AXIAL, 0) == photograph[:, :, 0].T).all()
    assert display.number(AXIAL, 0) == 1
    plans = Display(Grid((1, 4, 3)), order=(2, 0, 1))  # the same array in the axes of a plan
    assert (plans.volume(photograph.transpose(2, 0, 1)) == photograph).all()
    assert plans.plane == AXIAL


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_the_axes_of_a_plan_are_those_of_the_patient(order):
    spacing = (1.0, 1.5, 2.0)
    grid = Grid(tuple(SHAPE[axis] for axis in order), axes_affine(order, tuple(spacing[axis] for axis in order)))
    display = Display(grid)
    assert display.spacing == spacing
    assert np.argwhere(display.volume(beacon().transpose(order))).tolist() == [[0, 0, 0]]


def test_millimetres_are_square_in_a_picture():
    assert pixels_of((10, 20, 5), (1.0, 1.0, 4.0), AXIAL, 200) == (200, 100)
    assert pixels_of((10, 20, 5), (1.0, 1.0, 4.0), CORONAL, 200) == (200, 100)
    assert pixels_of((10, 20, 5), (1.0, 1.0, 4.0), SAGITTAL, 200) == (200, 200)
    assert pixels_of((1000, 2, 2), (1.0, 1.0, 1.0), AXIAL, 200) == (1, 200)
