"""Other choices on the same measured dataset, and what a plan remembers of its own."""

from __future__ import annotations

import pytest
from planning_cases import plan_of, volumes
from test_handmade import with_mine

from medmamba.errors import ConfigError
from medmamba.plans.explain import compare
from medmamba.plans.planner import what_if
from medmamba.plans.schema import Plan
from medmamba.plans.spacing import refuse_oversize, resampled_shape

IMAGES = volumes(10, (200, 180, 160))


def test_less_memory_gives_the_plan_that_planning_with_it_gives() -> None:
    now = plan_of(IMAGES, mirror="none", batch_size=3)
    assert what_if(now, IMAGES, device_memory_gb=2.0) == plan_of(
        IMAGES, mirror="none", batch_size=3, device_memory_gb=2.0
    )
    assert "3d_fullres.patch_size" in {
        field for field, _, _ in compare(now, what_if(now, IMAGES, device_memory_gb=2.0))
    }


def test_no_change_gives_the_same_plan_and_hand_made_parts_stay() -> None:
    now = plan_of(IMAGES)
    assert what_if(now, IMAGES) == now
    assert "mine" in what_if(with_mine(now), IMAGES, network="plain_unet").configurations


def test_a_plan_of_another_dataset_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not belong together"):
        what_if(plan_of(IMAGES), volumes(10, (60, 60, 60)))


def test_planning_anew_with_hand_made_parts_is_the_same_to_the_byte_each_time() -> None:
    first = plan_of(IMAGES, previous=with_mine(plan_of(IMAGES)))
    assert plan_of(IMAGES, previous=first).to_json() == first.to_json()


def test_a_plan_from_before_the_options_were_kept_can_be_read() -> None:
    plan = plan_of(IMAGES)
    text = plan.model_copy(update={"options": None}).to_json().replace('"options": null,', "")
    assert "options" not in text
    assert Plan.from_json(text).configurations == plan.configurations


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"spacing": (40, 1, 1)}, r"leaves 5 x 180 x 160 voxels .* Nearest that leaves enough: 25, 1, 1\."),
        ({"patch_size": (30, 40, 40)}, r"multiple of 8x8x8\. Nearest: 24x40x40 or 32x40x40"),
        ({"patch_size": (160, 160, 160)}, r"needs \d+\.?\d* GB, the device has 8 GB\. Nearest that fits: \d+x\d+x\d+"),
        ({"patch_size": (32, 32, 32), "batch_size": 500}, r"Largest that fits: \d+"),
        ({"network": "vmunet"}, "Did you mean 'vm_unet'"),
        ({"device_memory_gb": 0.001}, r"even a patch of 8x8 with a batch of 2 needs 0\.\d+ GB"),
        ({"patch_size": (32, 32), "configurations": ["3d_fullres"]}, r"2 numbers, but 3d_fullres .* Nearest: \d+x\d+x"),
        ({"configurations": ["3d_ful"]}, "Did you mean '3d_fullres'"),
    ],
)
def test_the_impossible_is_refused_with_the_nearest_possible(choices, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(IMAGES, **choices)


def test_the_nearest_spacing_that_is_named_works() -> None:
    assert plan_of(IMAGES, spacing=(25, 1, 1)).default.spacing_mm == [25, 1, 1]


def test_a_case_too_large_on_the_grid_is_refused_and_the_spacing_that_is_named_fits() -> None:
    plan = plan_of(IMAGES, spacing=(0.5, 0.5, 0.5))
    grid = plan.configurations["3d_fullres"]
    assert resampled_shape(IMAGES.cases[0], grid, plan.axis_order) == [400, 360, 320]
    refuse_oversize(IMAGES, grid, plan.axis_order)
    with pytest.raises(ConfigError, match=r"case_000: would have 400x360x320 voxels x 1 .*fits: 0.795, 0.795, 0.795"):
        refuse_oversize(IMAGES, grid, plan.axis_order, memory_bytes=8 * 11.5e6)
    smaller = plan_of(IMAGES, spacing=(0.795,) * 3)
    refuse_oversize(IMAGES, smaller.configurations["3d_fullres"], smaller.axis_order, memory_bytes=8 * 11.5e6)
