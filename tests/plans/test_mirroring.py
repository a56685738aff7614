"""Labels with a left and a right decide what may be mirrored."""

from __future__ import annotations

import pytest

from medmamba.errors import ConfigError
from medmamba.plans.mirroring import choose_mirroring, one_sided

KIDNEYS = ["liver", "left kidney", "right kidney"]


def test_a_side_without_its_counterpart_counts_and_a_lone_letter_does_not():
    assert one_sided(["left atrium", "L 4", "r_value", "cleft", "bright spot"]) == ["left atrium"]


@pytest.mark.parametrize(("order", "axes"), [([0, 1, 2], [1, 2]), ([2, 0, 1], [0, 2]), ([1, 0, 2], [0, 2])])
def test_the_left_right_axis_is_found_in_the_plans_order(order, axes):
    made, decision = choose_mirroring(KIDNEYS, order, 3)
    assert made.axes == axes
    assert made.keeps_sides
    assert "left kidney/right kidney" in decision.reason


def test_a_2d_patch_without_the_left_right_axis_is_mirrored_freely():
    assert choose_mirroring(KIDNEYS, [0, 1, 2], 2)[0].axes == [0, 1]
    assert choose_mirroring(KIDNEYS, [2, 0, 1], 2)[0].axes == [1]


def test_labels_without_sides_are_mirrored_along_every_axis():
    made, _ = choose_mirroring(["anterior", "posterior"], [0, 1, 2], 3)
    assert (made.axes, made.keeps_sides, made.swap_axis) == ([0, 1, 2], False, None)


def test_swap_needs_a_counterpart_for_every_side():
    made, _ = choose_mirroring(KIDNEYS, [2, 0, 1], 3, "swap")
    assert (made.axes, made.swap_axis) == ([0, 1, 2], 1)
    with pytest.raises(ConfigError, match="left atrium has no counterpart"):
        choose_mirroring(["left atrium"], [0, 1, 2], 3, "swap")
