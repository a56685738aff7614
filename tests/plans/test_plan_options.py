"""The choices of planning: one record that reads the command line's text, a recipe file's values and Python's alike."""

from __future__ import annotations

import json

import pytest

from medmamba.errors import ConfigError
from medmamba.plans.options import CANDIDATES, PlanOptions, PlanRequest, changes_from


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("patch_size", "64,96,96", (64, 96, 96)),
        ("patch_size", "64x96", (64, 96)),
        ("spacing", "1, 1, 2.5", (1.0, 1.0, 2.5)),
        ("device_memory_gb", "8GB", 8.0),
        ("device_memory_gb", "6144MiB", 6144 * 2**20 / 1e9),
        ("device_memory_gb", 6.1, 6.1),
        ("train_hours", "none", None),
        ("train_hours", "1.5", 1.5),
        ("configurations", "2d, 3d_fullres", ("2d", "3d_fullres")),
        ("configurations", ["2d"], ("2d",)),
        ("batch_size", "3", 3),
    ],
)
def test_a_choice_may_be_the_text_of_the_command_line(name, text, value):
    assert getattr(PlanOptions.of(**{name: text}), name) == value
    assert getattr(PlanRequest.of(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": "64,a"}, "--patch-size '64,a' is not a list of numbers. Write for example 64,96,96."),
        ({"patch_size": (64,)}, "--patch-size 64 must be 2 or 3 numbers of voxels of at least 1."),
        ({"batch_size": 0}, "--batch-size 0 must be at least 1."),
        ({"device_memory_gb": "6QB"}, "--device-memory '6QB' is not an amount of memory. Write for example 8GB."),
        ({"mirror": "swop"}, "--mirror 'swop' is none of: auto, swap, all, none. Did you mean 'swap'?"),
        ({"devicememory": 6}, "Unknown option 'devicememory'. Did you mean 'device_memory_gb'?"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line_with_option_value_and_cure(changes, message):
    with pytest.raises(ConfigError) as caught:
        PlanOptions.of(**changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_every_choice_has_a_help_text_and_a_panel():
    for name, field in PlanRequest.model_fields.items():
        assert field.description, name
        assert field.json_schema_extra["panel"], name


def test_the_planners_part_of_a_request_is_what_the_plan_stores():
    request = PlanRequest.of(PlanRequest(workers=2), network="mate", configurations="all", device_memory_gb="24GB")
    assert request.everything
    assert request.for_network("vim") == PlanOptions(network="vim", device_memory_gb=24.0)
    assert PlanRequest.of(request, configurations="2d").for_network("mate").configurations == ("2d",)
    assert PlanRequest().candidates == CANDIDATES
    assert PlanRequest(network="vim,mate").candidates == ("vim", "mate")


def test_options_stored_by_earlier_versions_are_read():
    before = """{"network": "vm_unet", "device_memory_gb": 8.0, "spacing": [1.0, 1.0, 2.5], "patch_size": null,
    "batch_size": null, "configurations": ["2d"], "use_scan": true, "mirror": "auto", "machine": "cpu",
    "train_hours": null}"""
    stored = PlanOptions.model_validate_json(before, strict=True)
    assert stored == PlanOptions(spacing=(1.0, 1.0, 2.5), configurations=("2d",))
    assert stored.model_dump(mode="json") == json.loads(before)


def test_what_if_reads_the_flags_of_the_same_record():
    text = "--device-memory=6GB --network mhs_vm --no-scan --train-hours none"
    changes = {"device_memory_gb": "6GB", "network": "mhs_vm", "use_scan": False, "train_hours": "none"}
    assert changes_from(text) == changes
