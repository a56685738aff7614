"""Configurations made by hand survive planning anew; edits that would be lost are refused."""

from __future__ import annotations

import pytest
from planning_cases import plan_of, volumes

from medmamba.errors import ConfigError
from medmamba.plans.manual_configurations import edited_by_hand
from medmamba.plans.schema import Plan


def with_mine(plan: Plan, **changes) -> Plan:
    mine = plan.default.model_copy(update={"name": "mine", "batch_size": 7, **changes})
    return plan.model_copy(update={"configurations": {**plan.configurations, "mine": mine}})


def test_a_hand_made_configuration_survives() -> None:
    images = volumes(10, (60, 64, 70))
    old = with_mine(plan_of(images))
    new = plan_of(images, device_memory_gb=4, previous=old)
    assert new.configurations["mine"] == old.configurations["mine"]
    assert new.configurations["2d"].decisions != old.configurations["2d"].decisions  # planned anew
    assert new.decisions[-1].value == ["mine"]
    assert Plan.from_json(new.to_json()) == new


def test_a_default_made_by_hand_stays_the_default() -> None:
    images = volumes(10, (60, 64, 70))
    old = with_mine(plan_of(images)).model_copy(update={"default_configuration": "mine"})
    assert plan_of(images, previous=old).default.name == "mine"


def test_planning_anew_without_hand_made_parts_changes_nothing() -> None:
    images = volumes(10, (60, 64, 70))
    plan = plan_of(images)
    assert plan_of(images, previous=plan).to_json() == plan.to_json()


def test_an_edit_under_the_planned_name_is_refused_and_named() -> None:
    images = volumes(10, (60, 64, 70))
    plan = plan_of(images)
    edited = plan.default.model_copy(update={"batch_size": 5})
    assert edited_by_hand(plan.default) == []
    assert edited_by_hand(edited) == ["batch_size is 5, decided was 2"]
    old = plan.model_copy(update={"configurations": {**plan.configurations, "3d_fullres": edited}})
    with pytest.raises(ConfigError, match=r"'3d_fullres' was edited by hand \(batch_size is 5, decided was 2\)"):
        plan_of(images, previous=old)


def test_a_hand_made_configuration_of_another_axis_order_is_refused() -> None:
    images = volumes(10, (60, 64, 70))
    old = with_mine(plan_of(images))
    with pytest.raises(ConfigError, match="'mine' was made for the axis order"):
        plan_of(images, spacing=(1.0, 3.0, 1.0), previous=old)


def test_a_hand_made_stage_whose_forerunner_is_gone_is_refused() -> None:
    images = volumes(10, (60, 64, 70))
    old = with_mine(plan_of(images), previous_stage="3d_lowres")
    with pytest.raises(ConfigError, match="follows '3d_lowres', which the new plan no longer has"):
        plan_of(images, previous=old)
