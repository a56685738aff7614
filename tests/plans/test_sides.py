"""Left and right labels are found by name, checked against world coordinates and handed to the plan."""

from __future__ import annotations

import pytest
from planning_cases import case, fingerprint

from medmamba.plans.mirroring import CANONICAL_X_AXIS, named_pairs, side_pairs, side_problems
from medmamba.plans.planner import make_plan

LABELS = {"background": 0, "kidney_left": 1, "kidney_right": 2}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("Left Atrium", "Right Atrium"),
        ("L-femur", "R-femur"),
        ("hippocampus lh", "hippocampus rh"),
        ("femurLeft", "femurRight"),
    ],
)
def test_pairs_are_found_by_the_word_for_the_side(left: str, right: str) -> None:
    assert named_pairs([right, "aorta", left]) == [(left, right)]


def test_names_that_only_look_alike_are_no_pair() -> None:
    assert named_pairs(["liver", "river", "left", "cleft", "lung_left", "lung"]) == []


def centred(case_id: str, x_left: float, x_right: float):
    return case(
        case_id,
        (40, 50, 60),
        label_centre_mm={"kidney_left": (x_left, 0.0, 0.0), "kidney_right": (x_right, 0.0, 0.0)},
    )


def test_the_right_label_lies_at_larger_world_x() -> None:
    made = fingerprint([centred("a", -50, 50), centred("b", -60, 40)], labels=LABELS)
    (pair,) = side_pairs(made)
    assert (pair.cases, pair.right_is_right, pair.distances_mm) == (2, 2, [100.0, 100.0])
    assert side_problems([pair]) == []


def test_exchanged_sides_are_reported_with_their_number() -> None:
    made = fingerprint([centred("a", -50, 50), centred("b", 60, -40)], labels=LABELS)
    (line,) = side_problems(side_pairs(made))
    assert "in 1 of 2 cases 'kidney_right' lies further to the patient's left" in line


def test_the_plan_carries_the_pairs_and_the_axis_they_mirror_along() -> None:
    thick_along_k = [case(f"c{n}", (200, 200, 20), (1.0, 1.0, 6.0)) for n in range(4)]
    plan = make_plan(fingerprint(thick_along_k, labels=LABELS))
    assert plan.axis_order == [2, 0, 1]
    assert plan.left_right_pairs == [["kidney_left", "kidney_right"]]
    assert plan.axis_order.index(CANONICAL_X_AXIS) == 1
    without = make_plan(fingerprint(thick_along_k))
    assert without.left_right_pairs == []


def test_class_presence_and_empty_cases_are_counted() -> None:
    made = fingerprint(
        [
            case("a", (9, 9, 9), label_voxels={"background": 9, "kidney_left": 3, "kidney_right": 0}),
            case("b", (9, 9, 9), label_voxels={"background": 9}),
        ],
        labels=LABELS,
    )
    assert [case.case_id for case in made.cases if not case.present_labels] == ["b"]
    assert [one.present_labels for one in made.cases] == [["kidney_left"], []]
