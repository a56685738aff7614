"""Grids, orientation and the trail back, against things one can compute by hand."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmamba.geometry import (
    Grid,
    Reorient,
    SpatialTrail,
    affine_from,
    affine_problem,
    all_reorientations,
    grid_difference,
)
from medmamba.geometry.grid import canonical_reorientation
from medmamba.geometry.trail import Crop, Pad, Resample


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_spacing_and_orientation_are_read_from_the_affine():
    grid = Grid((4, 5, 6), np.array([[0, 0, -2.0, 9], [-1.5, 0, 0, 8], [0, 4, 0, 7], [0, 0, 0, 1]]))
    assert grid.spacing_mm == (1.5, 4.0, 2.0)
    assert grid.orientation == "PSL"
    assert grid.extent_mm == (6.0, 20.0, 12.0)
    assert grid.voxel_volume_mm3 == pytest.approx(12.0)


def test_an_image_without_millimetres_has_none_not_one():
    grid = Grid((640, 480, 1))
    assert grid.spacing_mm is None
    assert grid.orientation is None
    assert grid.extent_mm is None
    assert canonical_reorientation(grid) == ((0, 1, 2), (False, False, False))


@pytest.mark.parametrize("shape", [(4, 5), (0, 1, 1), (1, 2, 3, 4)])
def test_a_grid_checks_its_shape_when_born(shape):
    with pytest.raises(ValueError, match="three axes"):
        Grid(shape)


def test_a_grid_is_equal_by_value_and_cannot_be_changed():
    first, second = Grid((2, 3, 4), np.eye(4)), Grid((2, 3, 4), np.eye(4))
    assert first == second
    assert hash(first) == hash(second)
    assert first != Grid((2, 3, 4))
    with pytest.raises(ValueError, match="read-only"):
        first.affine[0, 0] = 2


@pytest.mark.parametrize("seed", range(20))
def test_orientation_letters_agree_with_nibabel_on_oblique_affines(seed):
    rng = np.random.default_rng(seed)
    affine = affine_from((0.7, 1.1, 3.0), origin_mm=(-9, 20, 4), direction=rotation(rng))
    assert Grid((4, 5, 6), affine).orientation == "".join(nib.aff2axcodes(affine))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.__setitem__((0, 0), np.nan), "not finite"),
        (lambda a: a.__setitem__((0, 0), 1000.0), "spacing along i is 1000 mm, outside 0.01 to 100 mm"),
        (lambda a: a.__setitem__((1, 1), 0.0), "spacing along j is 0 mm"),
        (lambda a: a.__setitem__((0, 1), 0.2), "i and j meet at 78.69 degrees"),
        (lambda a: a.__setitem__((slice(0, 3), 1), [1, 0, 0]), "singular"),
        (lambda a: a.__setitem__((3, 3), 2.0), "last row"),
    ],
)
def test_an_affine_that_cannot_be_is_named(change, words):
    affine = np.eye(4)
    change(affine)
    assert words in affine_problem(affine)
    assert affine_problem(np.diag([0.5, 2, 5, 1])) is None


def test_the_difference_of_two_grids_is_said_in_words():
    grid = Grid((100, 100, 10), affine_from((1, 1, 5)))
    moved = Grid((100, 100, 10), affine_from((1, 1, 5), origin_mm=(0, 0.5, 0)))
    finer = Grid((100, 100, 10), affine_from((1, 1, 4)))
    assert grid_difference(grid, grid) is None
    assert "differ in shape: (100, 100, 10) and (100, 100, 9)" in grid_difference(grid, Grid((100, 100, 9)))
    assert "differ in origin (mm): (0, 0, 0) and (0, 0.5, 0)" in grid_difference(grid, moved)
    assert "differ in spacing (mm): (1, 1, 5) and (1, 1, 4)" in grid_difference(grid, finer)
    flipped = Reorient(grid.shape, (0, 1, 2), (True, False, False)).grid_after(grid)
    assert "differ in orientation: RAS and LAS" in grid_difference(grid, flipped)
    rounding = Grid(grid.shape, affine_from((1, 1, 5.0000001), origin_mm=(0, 1e-6, 0)))
    assert grid_difference(grid, rounding) is None


@pytest.mark.parametrize("degrees", [0.3, 1, 5])
def test_the_roughness_of_a_quaternion_is_not_another_grid(tmp_path, degrees):
    """One writer stores the affine itself (sform), another a rotation (qform); nearly half a turn is the worst case."""
    angle = np.radians(180 - degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = affine_from((0.7, 0.7, 1.0), origin_mm=(180, 170, -300), direction=turn)
    grids = []
    for code in ((1, 0), (0, 1)):
        image = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), affine)
        image.set_sform(affine, code=code[0])
        image.set_qform(affine, code=code[1])
        nib.save(image, tmp_path / "a.nii")
        grids.append(Grid((512, 512, 400), nib.load(tmp_path / "a.nii").affine))
    assert not np.array_equal(grids[0].affine, grids[1].affine)
    assert grid_difference(*grids) is None
    turned = Grid((512, 512, 400), affine @ np.array([[1, 2e-4, 0, 0], [-2e-4, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert "differ in place by up to" in grid_difference(grids[0], turned)
    shifted = Grid((512, 512, 400), affine + np.pad([[0.002]], ((0, 3), (3, 0))))
    assert "differ in origin" in grid_difference(Grid((512, 512, 400), affine), shifted)


def test_one_slice_with_another_thickness_is_another_grid():
    assert "spacing" in grid_difference(
        Grid((9, 9, 1), affine_from((1, 1, 5))), Grid((9, 9, 1), affine_from((1, 1, 6)))
    )


@pytest.mark.parametrize("direction", ["axis-aligned", "oblique", "45 degrees"])
def test_one_body_stored_in_48_ways_has_one_canonical_array_and_grid(direction):
    """Bit for bit the same voxels; and the way back gives each stored array again."""
    rng = np.random.default_rng(3)
    turn = {"axis-aligned": np.eye(3), "oblique": rotation(rng)}.get(direction)
    if turn is None:
        half = np.sqrt(0.5)
        turn = np.array([[half, -half, 0], [half, half, 0], [0, 0, 1.0]])
    body = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    grid = Grid((5, 6, 7), affine_from((0.8, 1.2, 3.0), origin_mm=(-40, 13, 7), direction=turn))
    seen, world = set(), None
    for permutation, flips in all_reorientations():
        store = Reorient(grid.shape, permutation, flips)
        stored, stored_grid = store.apply(body), store.grid_after(grid)
        trail = SpatialTrail(stored_grid).then(Reorient.to_canonical(stored_grid))
        canonical = trail.apply(stored)
        seen.add((canonical.tobytes(), trail.grid.shape))
        world = trail.grid.affine if world is None else world
        np.testing.assert_allclose(trail.grid.affine, world, atol=1e-12)
        np.testing.assert_array_equal(trail.undo(canonical), stored)
    assert len(all_reorientations()) == 48
    assert len(seen) == 1


def test_every_orientation_code_becomes_ras():
    for permutation, flips in all_reorientations():
        grid = Grid((3, 4, 5), affine_from((1, 2, 3)))
        stored = Reorient(grid.shape, permutation, flips).grid_after(grid)
        assert Reorient.to_canonical(stored).grid_after(stored) == grid


shapes = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def trails(draw):
    """A trail of lossless steps: reorient, crop, pad in any number and order."""
    grid = Grid(draw(shapes), affine_from((0.5, 1.0, 2.5), origin_mm=(1, -2, 3)))
    trail = SpatialTrail(grid)
    for kind in draw(st.lists(st.sampled_from(["reorient", "crop", "pad"]), max_size=5)):
        shape = trail.grid.shape
        if kind == "reorient":
            permutation, flips = draw(st.sampled_from(all_reorientations()))
            trail = trail.then(Reorient(shape, permutation, flips))
        elif kind == "crop":
            start = tuple(draw(st.integers(0, n - 1)) for n in shape)
            stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
            trail = trail.then(Crop(shape, start, stop))
        else:
            before, after = (tuple(draw(st.integers(0, 3)) for _ in range(3)) for _ in range(2))
            trail = trail.then(Pad(shape, before, after))
    return trail


@given(trails())
@settings(max_examples=150, deadline=None)
def test_lossless_steps_bring_every_kept_voxel_back_to_its_place(trail):
    numbers = np.arange(1, trail.native.voxels + 1).reshape(1, *trail.native.shape)
    there = trail.apply(numbers, fill=0)
    assert there.shape[1:] == trail.grid.shape
    back = trail.undo(there, fill=0)
    kept = back != 0
    np.testing.assert_array_equal(back[kept], numbers[kept])
    if not any(isinstance(step, Crop) for step in trail.steps):
        assert kept.all()


@given(trails())
@settings(max_examples=100, deadline=None)
def test_the_affine_follows_the_voxels(trail):
    """World coordinates, carried as channels, say the same as the grid at the end."""
    index = np.indices(trail.native.shape, dtype=np.float64)
    world = (
        np.einsum("xa,aijk->xijk", trail.native.affine[:3, :3], index) + trail.native.affine[:3, 3, None, None, None]
    )
    carried = trail.apply(world, fill=np.nan)
    grid = trail.grid
    index = np.indices(grid.shape, dtype=np.float64)
    expected = np.einsum("xa,aijk->xijk", grid.affine[:3, :3], index) + grid.affine[:3, 3, None, None, None]
    inside = np.isfinite(carried)
    np.testing.assert_allclose(carried[inside], expected[inside], atol=1e-9)


@given(trails())
@settings(max_examples=50, deadline=None)
def test_a_trail_survives_json(trail):
    again = SpatialTrail.from_dict(json.loads(json.dumps(trail.as_dict())))
    assert again == trail


def test_resampling_keeps_the_field_of_view_and_calls_the_given_function():
    grid = Grid((4, 6, 3), affine_from((2, 1, 5), origin_mm=(10, 20, 30)))
    step = Resample(grid.shape, (8, 3, 5), grid.spacing_mm, (1.0, 2.0, 3.0))
    after = step.grid_after(grid)
    np.testing.assert_allclose(after.spacing_mm, (1, 2, 3))
    np.testing.assert_allclose(after.extent_mm, grid.extent_mm)
    corner = lambda g: g.affine @ [-0.5, -0.5, -0.5, 1]  # noqa: E731
    np.testing.assert_allclose(corner(after), corner(grid))
    calls = []

    def nearest(array, shape, spacing_from_mm, spacing_to_mm):
        calls.append((array.shape[1:], shape, spacing_from_mm, spacing_to_mm))
        where = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, array.shape[1:], strict=True)]
        return array[np.ix_(range(len(array)), *where)]

    trail = SpatialTrail(grid).then(step)
    assert trail.undo(trail.apply(np.ones((2, 4, 6, 3)), resample=nearest), resample=nearest).shape == (2, 4, 6, 3)
    assert calls == [
        ((4, 6, 3), (8, 3, 5), (2.0, 1.0, 5.0), (1.0, 2.0, 3.0)),
        ((8, 3, 5), (4, 6, 3), (1.0, 2.0, 3.0), (2.0, 1.0, 5.0)),
    ]
    with pytest.raises(ValueError, match="pass the function that interpolates"):
        trail.apply(np.ones((1, 4, 6, 3)))


def test_probabilities_outside_the_crop_are_background():
    step = Crop((4, 4, 4), (1, 1, 1), (3, 3, 3))
    back = step.undo(np.full((2, 2, 2, 2), 0.5), fill=np.array([1.0, 0.0]))
    assert back[:, 0, 0, 0].tolist() == [1.0, 0.0]
    assert back[:, 1, 1, 1].tolist() == [0.5, 0.5]


def test_wrong_shapes_and_wrong_boxes_are_refused():
    with pytest.raises(ValueError, match="does not lie inside"):
        Crop((4, 4, 4), (0, 0, 0), (4, 4, 5))
    with pytest.raises(ValueError, match="Expected an array"):
        Crop((4, 4, 4), (0, 0, 0), (4, 4, 4)).apply(np.zeros((4, 4, 4)))
    with pytest.raises(ValueError, match="has reached"):
        SpatialTrail(Grid((4, 4, 4)), (Crop((5, 4, 4), (0, 0, 0), (1, 1, 1)),))
    with pytest.raises(ValueError, match="never negative"):
        Pad((4, 4, 4), (0, 0, -1), (0, 0, 0))
