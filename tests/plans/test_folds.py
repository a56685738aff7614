"""Folds: seeded, grouped, balanced, and a split that leaks is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunet_planner import nnunet_folds
from planning_cases import case, fingerprint

from medmamba.errors import ConfigError, InputErrors
from medmamba.plans.folds import (
    Fold,
    check_folds,
    groups_by_pattern,
    groups_of,
    make_folds,
)

IDS = [f"case_{number:03}" for number in range(23)]


@given(st.integers(2, 60), st.integers(0, 3), st.integers(1, 4))
def test_every_case_is_validated_once_and_folds_are_even(count: int, seed: int, group_size: int) -> None:
    ids = [f"c{number:03}" for number in range(count)]
    groups = {name: str(number // group_size) for number, name in enumerate(ids)}
    folds = make_folds(ids, group_of=groups, seed=seed)
    n_groups = len(set(groups.values()))
    if n_groups < 2:
        assert folds == [Fold(train=ids, val=ids)]
        return
    assert len(folds) == min(5, n_groups)
    assert sorted(name for fold in folds for name in fold["val"]) == ids
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == ids
        assert fold["train"]
        assert fold["val"]
        assert not {groups[n] for n in fold["train"]} & {groups[n] for n in fold["val"]}
    sizes = [len(fold["val"]) for fold in folds]
    assert max(sizes) - min(sizes) <= group_size
    check_folds(folds, ids, groups)


def test_the_seed_decides_and_the_order_of_the_cases_does_not() -> None:
    assert make_folds(IDS) == make_folds(IDS[::-1])
    assert make_folds(IDS, seed=1) != make_folds(IDS, seed=2)


def test_a_rare_label_is_spread_over_the_folds() -> None:
    labels = {name: ["common", "rare"] if number < 5 else ["common"] for number, name in enumerate(IDS)}
    for seed in range(10):
        folds = make_folds(IDS, labels_of=labels, seed=seed)
        assert [sum("rare" in labels[name] for name in fold["val"]) for fold in folds] == [1] * 5
        assert sorted(len(fold["val"]) for fold in folds) == [4, 4, 5, 5, 5]


def test_systole_and_diastole_of_a_patient_stay_together() -> None:
    ids = [f"scd_N-{number:02}_{phase}" for number in range(11) for phase in ("ED", "ES")]
    groups = groups_by_pattern(ids, r"(.*)_E[DS]$")
    for fold in make_folds(ids, group_of=groups):
        patients = {groups[name] for name in fold["val"]}
        assert len(fold["val"]) == 2 * len(patients)


def test_copies_of_one_image_stay_together() -> None:
    cases = [case(f"c{number}", (9, 9, 9), image_hash=f"{number // 2}") for number in range(12)]
    images = fingerprint(cases)
    for fold in make_folds([one.case_id for one in cases], group_of=groups_of(images, {})):
        numbers = {int(name[1:]) // 2 for name in fold["val"]}
        assert len(fold["val"]) == 2 * len(numbers)


def test_groups_join_where_they_overlap() -> None:
    hashes = {"a": None, "b": "h", "c": "h", "d": None}
    images = fingerprint([case(name, (9, 9, 9), image_hash=known) for name, known in hashes.items()])
    joined = groups_of(images, {"a": "p", "b": "p", "c": "q"})
    assert joined["a"] == joined["b"] == joined["c"]
    assert joined["d"] == "d"


def test_two_cases_give_two_folds_and_one_gives_one_that_is_told_by_its_equal_parts() -> None:
    assert len(make_folds(["a", "b"])) == 2
    assert make_folds(["a"]) == [Fold(train=["a"], val=["a"])]


def test_a_group_pattern_that_finds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="finds no patient in 1 of 2 case ids, the first is 'b'"):
        groups_by_pattern(["a1", "b"], r"\d")
    with pytest.raises(ConfigError, match="is not a regular expression"):
        groups_by_pattern(["a"], "(")


def test_nnunets_split_needs_five_cases() -> None:
    with pytest.raises(ConfigError, match="at least 5 cases, got 4"):
        nnunet_folds(IDS[:4])


def test_a_leaking_split_is_refused_with_every_fault() -> None:
    groups = {"a": "p", "b": "p"}
    folds = [
        Fold(train=["a", "c"], val=["b"]),
        Fold(train=["a"], val=["a"]),
        Fold(train=["a", "x", "c", "c"], val=[]),
    ]
    with pytest.raises(InputErrors) as caught:
        check_folds(folds, ["a", "b", "c"], groups)
    text = str(caught.value)
    assert "fold 0: 'b' (val) and 'a' (train) belong to the same patient" in text
    assert "fold 1: 'a' is in train and in val" in text
    assert "fold 2: train names 'x', which is not a case" in text
    assert "fold 2: train names 'c' twice" in text
    assert "fold 2: val is empty" in text
    assert len(caught.value.args) - 1 == 5
