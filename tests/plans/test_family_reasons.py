"""What a family says about its routes is what its route tables do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medmamba.networks.routes import routes as route_table
from medmamba.plans import families, network
from medmamba.plans.families import FAMILIES

GRIDS = ((4, 5), (3, 4, 5))


def routes_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return route_table(name, shape).numpy()


def runs_fastest(order: np.ndarray, shape: tuple[int, ...], axis: int) -> bool:
    """Whether consecutive voxels of a route differ along one axis alone, but for the ends of its lines."""
    places = np.stack(np.unravel_index(order, shape), 1)
    steps = np.abs(np.diff(places, axis=0))
    return int((steps[:, axis] > 0).sum()) >= len(order) * (shape[axis] - 1) // shape[axis]


@pytest.mark.parametrize("shape", GRIDS)
def test_what_the_rules_say_about_routes_is_what_the_routes_do(shape):
    said = {name: FAMILIES[name].routes_why.rule for name in FAMILIES}
    for name in ("vm_unet", "hrvmamba"):
        assert said[name] == "every axis runs fastest once, forwards and backwards"
        table = routes_of(FAMILIES[name].routes, shape)
        for axis in range(len(shape)):
            fastest = [order for order in table if runs_fastest(order, shape, axis)]
            assert len(fastest) == 2
            assert (fastest[0] == fastest[1][::-1]).all()
    rows = np.arange(math.prod(shape))
    assert "row by row" in said["vim"]
    assert "forwards and backwards" in said["vim"]
    assert (routes_of(FAMILIES["vim"].routes, shape) == np.stack([rows, rows[::-1]])).all()
    for name in ("u_mamba_bot", "u_mamba_enc"):
        assert said[name] == "one pass over the voxels, row by row"
        assert (routes_of(FAMILIES[name].routes, shape) == rows[None]).all()
    assert said["segmamba"] == "forwards, backwards, and across the first axis of the patch"
    tri = routes_of(FAMILIES["segmamba"].routes, shape)
    assert (tri[:2] == np.stack([rows, rows[::-1]])).all()
    assert runs_fastest(tri[2], shape, 0)
    assert "along the first axis of the patch" in FAMILIES["segmamba"].routes_why.reason  # in 2D there are no slices
    assert "a snake along every axis" in said["lamamba"]
    for order in routes_of(FAMILIES["lamamba"].routes, shape):
        steps = np.abs(np.diff(np.stack(np.unravel_index(order, shape), 1), axis=0))
        assert (steps.sum(1) == 1).all()  # consecutive voxels always touch, as its reason says
    assert "rotary-major" in said["mate"]
    rotary = routes_of(FAMILIES["mate"].routes, shape)
    assert len(rotary) == 2
    assert (rotary[0] == rotary[1][::-1]).all()
    from medmamba.networks.planned.mhs_vm import HEADS

    assert all(word in said["mhs_vm"] for word in HEADS.values())


def test_both_windows_hold_as_many_tokens():
    assert families.WINDOW_EDGE[2] ** 2 == families.WINDOW_EDGE[3] ** 3 == FAMILIES["lamamba"].window


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_of_ours_says_why_it_scans_as_it_does(name):
    family = FAMILIES[name]
    assert family.routes_why is not families.OWN
    assert not family.has_scan or family.states_why is not families.OWN
    assert network.SUPERVISED_FROM == 3
