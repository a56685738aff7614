"""Mirroring: which axes of a patch may be flipped without making the left structure the right one.

In a mirrored patient the left kidney is on the right. So where labels are left or right, the left-right axis is
either not mirrored, or mirrored with the labels of each pair exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from medmamba.errors import ConfigError, unknown_name
from medmamba.plans.left_right import CANONICAL_X_AXIS, named_pairs, words_of
from medmamba.plans.options import MirrorPolicy
from medmamba.plans.schema import Decision, Mirroring

RULE_OF: dict[str, str] = {
    "auto": "every axis, but not the left-right axis where a label name says left or right",
    "swap": "every axis; along the left-right axis the labels of each pair are exchanged",
    "all": "every axis",
    "none": "no axis",
}
"""The rule of each policy."""


def one_sided(names: Iterable[str]) -> list[str]:
    """Names with the word left or right whose other side is not a label: their mirror image would be mislabelled."""
    listed = list(names)
    paired = {name for pair in named_pairs(listed) for name in pair}
    return [name for name in listed if name not in paired and {"left", "right"} & set(words_of(name))]


def choose_mirroring(
    labels: Sequence[str], axis_order: Sequence[int], spatial_dims: int, policy: str = "auto"
) -> tuple[Mirroring, Decision]:
    """The axes of a patch (counted in the patch) that training and prediction may mirror.

    ``labels`` are the label names without background, ``axis_order`` the plan's. Raises ConfigError for a policy that
    these labels do not allow.
    """
    if policy not in get_args(MirrorPolicy):
        raise unknown_name("mirror policy", policy, get_args(MirrorPolicy))
    pairs, lone = named_pairs(labels), one_sided(labels)
    every = list(range(spatial_dims))
    axis = list(axis_order).index(CANONICAL_X_AXIS) - (3 - spatial_dims)  # -1: a 2D patch does not hold it
    sided = bool(pairs or lone) and axis >= 0
    names = ", ".join(["/".join(pair) for pair in pairs] + lone)
    if policy == "swap" and (lone or not pairs):
        raise ConfigError(
            f"mirror policy swap: {', '.join(lone) or 'no label'} has no counterpart on the other side to exchange "
            f"with. Use auto."
        )
    if policy == "none":
        made, reason = Mirroring(axes=[], keeps_sides=sided), "No mirroring, as asked for."
    elif not sided:
        made = Mirroring(axes=every)
        reason = "No label of these patches is left or right, so every axis is mirrored."
    elif policy == "all":
        made, reason = Mirroring(axes=every), f"All axes, as asked for, although labels are left or right ({names})."
    elif policy == "swap":
        made = Mirroring(axes=every, swap_axis=axis, keeps_sides=True)
        reason = f"Left-right mirroring (patch axis {axis}) exchanges the labels {names}, as asked for."
    else:
        made = Mirroring(axes=[a for a in every if a != axis], keeps_sides=True)
        reason = (
            f"Labels are left or right ({names}), so patches are not mirrored from left to right (patch axis {axis}), "
            f"and never rotated so far that a mirrored and rotated patch would amount to it."
        )
    return made, Decision(
        name="mirroring",
        value=made.axes,
        inputs={
            "pairs": [list(pair) for pair in pairs],
            "one_sided": lone,
            "policy": policy,
            "left_right_patch_axis": axis,
        },
        rule=RULE_OF[policy],
        reason=reason,
        source="ours; nnU-Net mirrors every axis unless another trainer is chosen",
    )
