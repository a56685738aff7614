"""One body in files of all 48 orientations and all kinds: one canonical image, and each mask on its own file's grid."""

from itertools import islice

import nibabel as nib
import numpy as np
import pytest

from medmamba.geometry import Grid, Reorient, SpatialTrail, affine_from, all_reorientations, grid_difference
from medmamba.images import read_image, read_label_map, write_image, write_label_map

pytestmark = pytest.mark.filterwarnings("error")


def turned(degrees: float) -> np.ndarray:
    """A rotation about all three axes."""
    x = y = z = np.radians(degrees)
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return rx @ ry @ rz


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("degrees", [0, 17, 30])
def test_a_body_is_one_body_whatever_file_it_is_in(tmp_path, ending, degrees):
    rng = np.random.default_rng(8)
    body = rng.normal(size=(1, 5, 6, 7)).astype(np.float32)
    grid = Grid((5, 6, 7), affine_from((0.8, 1.3, 3.1), origin_mm=(-71.3, 14, 9), direction=turned(degrees)))
    ways = all_reorientations() if ending == "nii.gz" else list(islice(all_reorientations(), 0, None, 7))
    canonical, prediction = set(), rng.integers(0, 3, (1, 5, 6, 7))
    for number, (permutation, flips) in enumerate(ways):
        how = Reorient(grid.shape, permutation, flips)
        path, mask = tmp_path / f"{number}.{ending}", tmp_path / f"{number}_mask.{ending}"
        write_image(path, how.apply(body), like=how.grid_after(grid))
        image = read_image(path)
        trail = SpatialTrail(image.grid).then(Reorient.to_canonical(image.grid))
        canonical.add(trail.apply(image.array).tobytes())
        assert grid_difference(trail.grid, Grid(trail.grid.shape, trail.grid.affine)) is None
        # A model sees the canonical array and answers there; its answer goes back to the file's own grid.
        answer = SpatialTrail(grid).then(Reorient.to_canonical(grid)).apply(prediction)
        write_label_map(mask, trail.undo(answer)[0], like=image)
        again = read_label_map(mask)
        assert again.grid == image.grid
        np.testing.assert_array_equal(again.array, how.apply(prediction)[0])
        if ending == "nii.gz":
            assert nib.load(mask).affine.tobytes() == nib.load(path).affine.tobytes()
    assert len(canonical) == 1
