"""Left and right labels: pairs, their positions, and the axes of a patch that may be mirrored.

In a mirrored patient the left kidney is on the right. So where labels are left or right, the left-right axis is
either not mirrored, or mirrored with the labels of each pair exchanged. In RAS+ millimetres x grows towards the
patient's right.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmamba.errors import ConfigError
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.options import MirrorPolicy
from medmamba.plans.schema import Decision, Mirroring

CANONICAL_X_AXIS = 0
"""Array axis that runs from the patient's left to right once an image is brought to RAS+."""

WORDS = {"left": "right", "l": "r", "lt": "rt", "lh": "rh", "sin": "dex", "links": "rechts", "gauche": "droite"}
"""Words for left, and for right, as they stand in label names (lower case)."""

RULE_OF: dict[MirrorPolicy, str] = {
    "auto": "every axis, but not the left-right axis where a label name says left or right",
    "swap": "every axis; along the left-right axis the labels of each pair are exchanged",
    "all": "every axis",
    "none": "no axis",
}
"""The rule of each policy."""


@dataclass(frozen=True)
class SidePair:
    """Two labels that are each other's mirror image."""

    left: str
    right: str
    distances_mm: list[float]
    """x(right) - x(left) of the cases in which both centres are known; positive if anatomically correct."""

    @property
    def cases(self) -> int:
        return len(self.distances_mm)

    @property
    def right_is_right(self) -> int:
        """Number of cases with the right label further to the patient's right."""
        return sum(distance > 0 for distance in self.distances_mm)


def side_pairs(fingerprint: Fingerprint) -> list[SidePair]:
    """The left-right pairs among the labels, by name, with where they lie in world coordinates."""
    centres = [case.label_centre_mm for case in fingerprint.cases]
    return [
        SidePair(left, right, [at[right][0] - at[left][0] for at in centres if left in at and right in at])
        for left, right in named_pairs(fingerprint.labels)
    ]


def named_pairs(labels: Mapping[str, int] | Sequence[str]) -> list[tuple[str, str]]:
    """Names that differ only in a word for left and right.

    >>> named_pairs(["kidney_left", "kidney_right", "L-femur", "R-femur", "aorta"])
    [('kidney_left', 'kidney_right'), ('L-femur', 'R-femur')]
    """
    by_words = {tuple(words_of(name)): name for name in labels}
    pairs = []
    for words, name in by_words.items():
        for place, word in enumerate(words):
            if word in WORDS:
                other = by_words.get((*words[:place], WORDS[word], *words[place + 1 :]))
                if other is not None:
                    pairs.append((name, other))
    return pairs


def side_problems(pairs: Sequence[SidePair]) -> list[str]:
    """Warnings about pairs that do not lie where their names say, one line each."""
    found = []
    for pair in pairs:
        wrong = pair.cases - pair.right_is_right
        if wrong:
            found.append(
                f"labels {pair.left!r} and {pair.right!r}: in {wrong} of {pair.cases} cases {pair.right!r} lies "
                f"further to the patient's left. "
                f"Check the orientation in the headers, and whether the names are exchanged."
            )
    return found


def pairs_decision(pairs: Sequence[SidePair], axis_order: Sequence[int]) -> Decision:
    """The labels that mirroring along the left-right axis exchanges."""
    axis = list(axis_order).index(CANONICAL_X_AXIS)
    reason = "No label has a left-right counterpart, so images may be mirrored along every axis."
    if pairs:
        reason = f"Mirroring along plan axis {axis} turns left into right: these labels would have to be exchanged."
    return Decision(
        name="left_right_pairs",
        value=[[pair.left, pair.right] for pair in pairs],
        inputs={
            "plan_axis": axis,
            "median_distance_mm": [float(np.median(p.distances_mm)) if p.distances_mm else None for p in pairs],
            "cases": [pair.cases for pair in pairs],
        },
        rule="labels whose names differ only in a word for left and right",
        reason=reason,
        source="medmamba.plans.mirroring",
    )


def words_of(name: str) -> list[str]:
    """Words of a label name in lower case: at blanks, signs and changes to a capital letter."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^0-9a-z]+", spaced.lower()) if word]


def one_sided(names: Sequence[str]) -> list[str]:
    """Names with the word left or right whose other side is not a label: their mirror image would be mislabelled."""
    paired = {name for pair in named_pairs(names) for name in pair}
    return [name for name in names if name not in paired and {"left", "right"} & set(words_of(name))]


def choose_mirroring(
    labels: Sequence[str], axis_order: Sequence[int], spatial_dims: int, policy: MirrorPolicy = "auto"
) -> tuple[Mirroring, Decision]:
    """The axes of a patch (counted in the patch) that training and prediction may mirror.

    ``labels`` are the label names without background, ``axis_order`` the plan's. Raises ConfigError for a policy that
    these labels do not allow.
    """
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
