"""How many routes each stage of a plan gets."""

from __future__ import annotations

from medmamba.networks.planned.stage_mixers import routes_per_stage
from medmamba.networks.planned.unet import Topology


def test_falling_schedule_has_one_route_at_the_bottleneck_and_two_more_per_level() -> None:
    topology = Topology(3, 1, 2, ((1, 1, 1),) + ((2, 2, 2),) * 3, (8, 16, 24, 32), (2, 1, 1, 1))
    assert routes_per_stage(topology, "raster", "falling") == ["raster", "raster:5", "raster:3", "raster:1"]
    assert routes_per_stage(topology, "raster", "rising") == ["raster", "raster:1", "raster:3", "raster:5"]
