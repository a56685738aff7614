"""Left and right: which labels are each other's mirror image, and whether they lie where their names say.

Mirroring an image along the left-right axis turns a left kidney into a right one, so training and test-time mirroring
must swap such labels or leave that axis alone. In RAS+ millimetres x grows towards the patient's right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from medmamba.plans.fingerprint import CaseStats, Fingerprint
from medmamba.plans.json_record import Record
from medmamba.plans.schema import Decision

CANONICAL_X_AXIS = 0
"""Array axis that runs from the patient's left to right once an image is brought to RAS+."""

WORDS = {"left": "right", "l": "r", "lt": "rt", "lh": "rh", "sin": "dex", "links": "rechts", "gauche": "droite"}
"""Words for left, and for right, as they stand in label names (lower case)."""


class SidePair(Record):
    """Two labels that are each other's mirror image."""

    left: str
    right: str
    cases: int
    """Cases in which both are present and their centres known."""
    right_is_right: int
    """Of these, cases in which the right one lies further to the patient's right."""
    median_distance_mm: float | None
    """Median of x(right) - x(left); positive as anatomy wants it."""


def side_pairs(fingerprint: Fingerprint) -> list[SidePair]:
    """The left-right pairs among the labels, by name, with where they lie in world coordinates."""
    return [_measure(left, right, fingerprint.cases) for left, right in named_pairs(fingerprint.labels)]


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


def mirror_decision(pairs: Sequence[SidePair], axis_order: Sequence[int]) -> Decision:
    """Whether images may be mirrored along the left-right axis."""
    axis = list(axis_order).index(CANONICAL_X_AXIS)
    names = [[pair.left, pair.right] for pair in pairs]
    reason = (
        f"Mirroring along plan axis {axis} turns left into right: these labels would have to be exchanged with it."
        if names
        else "No label has a left-right counterpart, so images may be mirrored along every axis."
    )
    return Decision(
        name="left_right_pairs",
        value=names,
        inputs={
            "plan_axis": axis,
            "median_distance_mm": [pair.median_distance_mm for pair in pairs],
            "cases": [pair.cases for pair in pairs],
        },
        rule="labels whose names differ only in a word for left and right",
        reason=reason,
        source="medmamba.plans.left_right",
    )


def _measure(left: str, right: str, cases: Sequence[CaseStats]) -> SidePair:
    distances = [
        case.label_centre_mm[right][0] - case.label_centre_mm[left][0]
        for case in cases
        if left in case.label_centre_mm and right in case.label_centre_mm
    ]
    return SidePair(
        left=left,
        right=right,
        cases=len(distances),
        right_is_right=sum(distance > 0 for distance in distances),
        median_distance_mm=float(np.median(distances)) if distances else None,
    )


def words_of(name: str) -> list[str]:
    """Words of a label name in lower case: at blanks, signs and changes to a capital letter."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^0-9a-z]+", spaced.lower()) if word]
