"""Plans and fingerprints survive the way through JSON, and bad files give all their faults at once."""

from __future__ import annotations

import json

import pytest
from planning_cases import DATASETS, reference_fingerprint, volumes

from medmamba.errors import ConfigError
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.json_record import canonical_json
from medmamba.plans.planner import make_plan
from medmamba.plans.schema import Plan


@pytest.mark.parametrize("name", DATASETS)
def test_fingerprint_and_plan_survive_json(name: str) -> None:
    fingerprint = reference_fingerprint(name)
    assert Fingerprint.from_json(fingerprint.to_json()) == fingerprint
    plan = make_plan(fingerprint)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.hash() == plan.hash()
    assert again.to_json() == plan.to_json()


def test_the_hash_changes_with_any_number() -> None:
    plan = make_plan(volumes(10, (40, 50, 60)))
    other = plan.model_copy(update={"file_ending": ".nrrd"})
    assert other.hash() != plan.hash()
    assert len(plan.hash()) == 64


def test_all_faults_of_a_plan_file_are_listed_with_their_paths() -> None:
    document = json.loads(make_plan(volumes(10, (40, 50, 60))).to_json())
    document["configurations"]["3d_fullres"]["patch_size"] = [40, "56", 64]
    document["configurations"]["2d"]["network"]["state_size"] = 0
    document["colour"] = "red"
    del document["file_ending"]
    with pytest.raises(ConfigError) as caught:
        Plan.from_json(json.dumps(document), source="plan.json")
    text = str(caught.value)
    assert "plan.json: configurations.3d_fullres.patch_size[1]: " in text
    assert 'got "56"' in text
    assert "plan.json: configurations.2d.network.state_size: " in text
    assert "plan.json: colour: unknown field" in text
    assert "plan.json: file_ending: this field is missing." in text
    assert "4 faults in this plan" in text


def test_numbers_that_do_not_fit_together_are_refused() -> None:
    document = json.loads(make_plan(volumes(10, (40, 50, 60))).to_json())
    document["configurations"]["3d_fullres"]["patch_size"] = [41, 56, 64]
    with pytest.raises(ConfigError, match=r"patch_size \[41, 56, 64\] is not a multiple of"):
        Plan.from_json(json.dumps(document))
    document = json.loads(make_plan(volumes(10, (40, 50, 60))).to_json())
    document["configurations"]["2d"]["previous_stage"] = "3d_lowres"
    with pytest.raises(ConfigError, match="follows '3d_lowres', which is not among the configurations"):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "plan.json: not a valid JSON plan"),
        ("[]", "a plan is a JSON object, got list"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": NaN}', "NaN is not a number in JSON"),
        ('{"schema_version": 2}', "has version 2, this medmamba reads version 1"),
    ],
)
def test_a_file_that_is_no_plan_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"plan\.json") as caught:
        Plan.from_json(text, source="plan.json")
    assert message in str(caught.value)


def test_records_are_frozen() -> None:
    plan = make_plan(volumes(10, (40, 50, 60)))
    with pytest.raises(ValueError, match="frozen"):
        plan.file_ending = ".nrrd"  # type: ignore[misc]


def test_canonical_json_reads_back_and_keeps_lines_short() -> None:
    value = {"a": list(range(100)), "b": {"c": [1, 2], "d": 0.1}, "e": []}
    text = canonical_json(value)
    assert json.loads(text) == value
    assert '"b": {"c": [1, 2], "d": 0.1}' in text
