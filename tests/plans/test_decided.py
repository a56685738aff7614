"""Two plans that decide the same, whatever their reasons; and which decisions are named where they do not."""

from __future__ import annotations

from typing import Any

import pytest
from planning_cases import plan_of, reference_fingerprint

from medmamba.plans.decided import REASONS, changed_decisions
from medmamba.plans.schema import Plan

CASCADE = "3d_cascade_fullres"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(reference_fingerprint("ct_abdomen_large"))


def changed(plan: Plan, configuration: str, **values: Any) -> Plan:
    part = plan.configurations[configuration].model_copy(update=values)
    return plan.model_copy(update={"configurations": {**plan.configurations, configuration: part}})


def test_every_field_of_a_plan_is_a_decision_or_a_reason(plan: Plan) -> None:
    """A new field of the plan is a decision, unless it is named among the reasons."""
    other: dict[str, Any] = {"dataset_hash": "0" * 64, "file_ending": ".mha", "conventions": "nnunet"}
    for field, value in other.items():
        assert changed_decisions(plan, plan.model_copy(update={field: value}), "3d_fullres"), field
    assert set(REASONS) < set(Plan.model_fields)
    reasons = {"medmamba_version": "0.0.1", "fingerprint_hash": "0", "options": None, "decisions": []}
    assert changed_decisions(plan, plan.model_copy(update=reasons), "3d_fullres") == []
    assert changed_decisions(plan, changed(plan, "3d_fullres", decisions=[]), "3d_fullres") == []


def test_a_configuration_follows_its_own_numbers_and_those_of_its_first_stage(plan: Plan) -> None:
    other = changed(plan, "3d_lowres", batch_size=7)
    told = [f"3d_lowres.batch_size: {plan.configurations['3d_lowres'].batch_size} then, 7 now"]
    assert changed_decisions(plan, other, CASCADE) == told
    assert changed_decisions(plan, other, "3d_fullres") == []
    assert changed_decisions(plan, other, "absent") == ["absent is not planned"]


def test_numbers_of_normalisation_and_other_images_are_named(plan: Plan) -> None:
    scaled = [entry.model_copy(update={"mean": 1.5}) for entry in plan.normalization]
    told = changed_decisions(plan, plan.model_copy(update={"normalization": scaled}), "2d")
    assert len(told) == 1
    assert told[0].startswith("normalization: ")
    assert changed_decisions(plan, plan.model_copy(update={"dataset_hash": "0"}), "2d") == [
        "other images or label maps"
    ]


def test_what_an_earlier_version_did_not_decide_is_no_change(plan: Plan) -> None:
    def files(count: int | None) -> Plan:
        return plan.model_copy(update={"reading": plan.reading.model_copy(update={"channel_files": count})})

    assert changed_decisions(files(None), files(0), "2d") == []
    assert changed_decisions(files(1), files(0), "2d") == ["reading.channel_files: 1 then, 0 now"]
