"""Our own plans: valid for every dataset, explained, within the memory, and the user's wishes are checked."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import DATASETS, case, fingerprint, plan_of, read, reference_fingerprint, volumes

from medmamba.errors import ConfigError, InputErrors
from medmamba.models.network import network_arguments
from medmamba.plans.explain import compare, compare_lines, explain_lines, summary, summary_lines
from medmamba.plans.families import FAMILIES
from medmamba.plans.schema import Plan
from medmamba.plans.text_table import aligned


def decision(plan: Plan, configuration: str, name: str):
    return next(d for d in plan.configurations[configuration].decisions if d.name == name)


@pytest.mark.parametrize("network", sorted(FAMILIES))
@pytest.mark.parametrize("name", DATASETS)
def test_every_reference_dataset_gets_a_plan_within_the_memory(name: str, network: str) -> None:
    plan = plan_of(reference_fingerprint(name), network=network)
    for part in plan.configurations.values():
        assert all(n % d == 0 for n, d in zip(part.patch_size, part.network.divisor, strict=True))
        assert part.batch_size >= 2
        assert part.network.name == network
        assert next(d.value for d in part.decisions if d.name == "training_memory_gb") <= 8.0


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "one_slice_coarse_axis_elsewhere"])
def test_spacing_axis_order_and_normalisation_follow_nnunet(name: str) -> None:
    expected = read(name)["expected"]
    plan = plan_of(reference_fingerprint(name))
    assert plan.axis_order == expected["transpose_forward"]
    assert np.argsort(plan.axis_order).tolist() == expected["transpose_backward"]
    target = next(d.value for d in plan.decisions if d.name == "target_spacing")
    assert target == pytest.approx(expected["target_spacing"], rel=1e-9)
    assert [n.use_mask for n in plan.normalization] == expected["use_mask_for_norm"]
    variant = next(v for v in expected["variants"] if v["planner"] == "default")
    for configuration, wanted in variant["configurations"].items():
        if configuration in ("2d", "3d_fullres"):
            assert plan.configurations[configuration].median_shape == wanted["median_image_size_in_voxels"]
    assert ("3d_fullres" in plan.configurations) == ("3d_fullres" in variant["configurations"])


def test_hippocampus_crops_are_seen_whole_at_full_resolution() -> None:
    plan = plan_of(reference_fingerprint("mr_hippocampus_tiny"))
    full = plan.default
    assert full.name == "3d_fullres"
    assert full.patch_size == [40, 56, 40]
    assert full.batch_size == 2
    assert full.network.stem == "conv"
    assert full.network.strides == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert full.network.features_per_stage == [16, 32, 64, 128]
    assert full.network.blocks_per_stage == [2, 0, 1, 1]  # no scan where voxels are many: docs/benchmarks/ablation.md


@pytest.mark.parametrize("own", [True, False], ids=["planned", "edited by hand"])
def test_another_family_on_a_plan_has_the_blocks_of_its_own_plan_unless_a_hand_set_them(own: bool) -> None:
    plan = plan_of(reference_fingerprint("mr_hippocampus_tiny"), network="mate")
    configuration = plan.default
    if not own:
        edited = configuration.network.model_copy(update={"blocks_per_stage": [2, 3, 1, 1]})
        configuration = configuration.model_copy(update={"network": edited})
    blocks = network_arguments(plan, configuration, network="mhs_vm")["blocks_per_stage"]
    assert blocks == ([2, 0, 1, 1] if own else [2, 3, 1, 1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flat_data_of_any_axis_gets_a_2d_plan_of_the_right_axes(axis: int) -> None:
    shape = [200, 240, 260]
    shape[axis] = 1
    plan = plan_of(volumes(8, shape, (0.5, 0.6, 0.7)))
    assert list(plan.configurations) == ["2d"]
    assert plan.axis_order[0] == axis
    assert plan.default.median_shape == [size for size in shape if size != 1]


def test_images_without_millimetres_are_planned_in_pixels() -> None:
    plan = plan_of(volumes(8, (1, 300, 400), None))
    assert list(plan.configurations) == ["2d"]
    assert plan.default.spacing_mm is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_cases_get_a_plan(count: int) -> None:
    assert plan_of(volumes(count, (60, 210, 220), (2.5, 0.9, 0.9))).default.batch_size == 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (7, 7, 7), (1, 7, 7), (5, 300, 300), (3, 8, 900)])
@pytest.mark.parametrize("network", sorted(FAMILIES))
def test_odd_shapes_get_a_plan(shape: tuple[int, int, int], network: str) -> None:
    plan = plan_of(volumes(5, shape), network=network)
    assert len(plan.default.network.strides) >= FAMILIES[network].min_stages


def test_the_same_plan_twice_is_the_same_to_the_byte() -> None:
    for name in ("ct_lung", "mr_spine_sagittal_axis2"):
        assert plan_of(reference_fingerprint(name)).to_json() == plan_of(reference_fingerprint(name)).to_json()


def test_more_memory_never_means_a_smaller_patch() -> None:
    before = 0
    for memory in (2.0, 4.0, 8.0, 16.0, 24.0, 40.0):
        plan = plan_of(reference_fingerprint("ct_abdomen_large"), device_memory_gb=memory)
        volume = math.prod(plan.configurations["3d_fullres"].patch_size)
        assert volume > before
        before = volume


def test_too_little_memory_is_refused_with_what_would_be_needed() -> None:
    with pytest.raises(ConfigError, match=r"device memory of 0.001 GB: cannot fit vm_unet; even a patch of .* needs"):
        plan_of(reference_fingerprint("ct_lung"), device_memory_gb=0.001)


def test_a_patch_that_does_not_fit_the_strides_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"patch size 40x50x40: .* multiple of 8x8x8. Nearest: 40x48x40 or 40x56x40"):
        plan_of(volumes(10, (40, 60, 50)), patch_size=(40, 50, 40))


def test_a_patch_that_does_not_fit_the_memory_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"patch size 256x256x256: .* the device has 8 GB. Nearest that fits: \d+x"):
        plan_of(volumes(10, (256, 256, 256)), patch_size=(256, 256, 256))


def test_a_batch_that_does_not_fit_the_memory_is_refused_with_the_largest() -> None:
    with pytest.raises(ConfigError, match=r"batch size 500: .* Largest that fits: \d+"):
        plan_of(volumes(10, (64, 64, 64)), patch_size=(64, 64, 64), batch_size=500, configurations=["3d_fullres"])


def test_given_numbers_are_used_and_marked_as_given() -> None:
    plan = plan_of(volumes(10, (64, 64, 64)), patch_size=(32, 32, 32), batch_size=3, spacing=(1.0, 2.0, 1.0))
    assert plan.axis_order == [1, 0, 2]
    full = plan.configurations["3d_fullres"]
    assert (full.patch_size, full.batch_size, full.spacing_mm) == ([32, 32, 32], 3, [2.0, 1.0, 1.0])
    assert decision(plan, "3d_fullres", "patch_size").source == "user"
    assert decision(plan, "3d_fullres", "batch_size").source == "user"
    assert plan.decisions[0].source == "user"
    assert plan.decisions[0].inputs["by_rule"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "vmunet"}, "Unknown network 'vmunet'. Did you mean 'vm_unet'"),
        ({"network": "mambaout", "use_scan": False}, "network 'mambaout' has no scan to leave out"),
        ({"configurations": ["3d"]}, "Unknown configuration '3d'"),
        ({"configurations": ["3d_lowres"]}, "Ask for 3d_fullres or 2d"),
        ({"spacing": (1, 0, 1)}, "spacing 1, 0, 1: must be 3 numbers of mm"),
        ({"spacing": (1e-300, 1, 1)}, "spacing 1e-300, 1, 1: must be 3 numbers of mm"),
        ({"device_memory_gb": -1}, "--device-memory -1 must be above 0"),
        ({"device_memory_gb": float("nan")}, "--device-memory nan must be a finite number"),
        ({"batch_size": 0}, "--batch-size 0 must be at least 1"),
        ({"patch_size": (64,)}, "--patch-size 64 must be 2 or 3 numbers of voxels of at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_of(volumes(10, (64, 64, 64)), **options)


def test_3d_for_flat_images_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="the images have one slice, so only 2d can be planned"):
        plan_of(volumes(4, (1, 64, 64)), configurations=["3d_fullres"])


@pytest.mark.parametrize("spacing", [0.0, 1e-300, -1.0, 1e6])
def test_a_senseless_spacing_names_case_and_axis(spacing: float) -> None:
    bad = fingerprint([case("good", (9, 9, 9)), case("bad", (9, 9, 9), (1.0, spacing, 1.0))])
    with pytest.raises(InputErrors, match="bad: spacing along axis j is"):
        plan_of(bad)


def test_a_cascade_follows_the_low_resolution() -> None:
    plan = plan_of(reference_fingerprint("ct_abdomen_large"))
    assert list(plan.configurations) == ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
    cascade, full = plan.configurations["3d_cascade_fullres"], plan.configurations["3d_fullres"]
    assert cascade.previous_stage == "3d_lowres"
    assert (cascade.patch_size, cascade.network) == (full.patch_size, full.network)
    assert (full.batch_dice, plan.configurations["3d_lowres"].batch_dice) == (True, False)


def test_every_number_of_a_configuration_has_its_reason() -> None:
    plan = plan_of(reference_fingerprint("ct_lung"))
    wanted = {"median_shape", "patch_size", "batch_size", "batch_dice", "stem", "strides", "kernel_sizes"}
    wanted |= {"features_per_stage", "blocks_per_stage", "deep_supervision", "routes", "state_size"}
    for part in plan.configurations.values():
        names = {d.name for d in part.decisions}
        assert wanted <= names
        assert all(d.reason.endswith(".") and d.rule and d.source for d in part.decisions)
    names = [d.name for d in plan.decisions]
    assert names == ["target_spacing", "axis_order", "normalization[CT]", "left_right_pairs", "configurations"]


def test_explaining_prints_rule_inputs_and_reason_of_each_decision() -> None:
    plan = plan_of(reference_fingerprint("mr_cardiac_thick_slice"))
    text = "\n".join(explain_lines(plan))
    assert "target_spacing = [5, 1.5625, 1.5625]" in text
    assert "thick" in text
    for part in plan.configurations.values():
        for made in part.decisions:
            assert made.reason in text
    assert "Configuration 2d" in text
    assert summary(plan)[0][0] == "configuration"
    assert len(summary(plan)) == 1 + len(plan.configurations)
    assert any(line.startswith("3d_fullres *") for line in summary_lines(plan))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_tables_of_a_plan_fit_the_terminal(width) -> None:
    eight = plan_of(reference_fingerprint("ct_lung"))
    four = plan_of(reference_fingerprint("ct_lung"), device_memory_gb=4, network="plain_unet")
    lines = compare_lines(eight, four, names=("now", "--device-memory 4GB --network plain_unet"), width=width)
    table = summary_lines(eight, width)[: len(aligned(summary(eight), width))]
    assert max(map(len, [*lines, *table])) <= width
    text = " ".join("\n".join(lines).split())
    rows = [row for row in compare(eight, four) if row[0].endswith((".patch_size", ".batch_size"))]
    assert rows
    assert all(part in text for _, *parts in rows for part in parts)


def test_what_if_lists_only_what_differs() -> None:
    eight = plan_of(reference_fingerprint("ct_lung"))
    four = plan_of(reference_fingerprint("ct_lung"), device_memory_gb=4)
    changed = {field: (before, after) for field, before, after in compare(eight, four)}
    assert "3d_fullres.patch_size" in changed
    assert "axis_order" not in changed
    assert compare(eight, eight) == []
    assert compare_lines(eight, eight) == ["Both plans are the same."]
    header, *lines = compare_lines(eight, four)
    assert header.split() == ["now", "what", "if"]
    assert len(lines) == len(changed)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 12.0)] * 3),
    count=st.integers(1, 40),
    memory=st.floats(2.0, 48.0),
)
def test_any_sensible_dataset_gets_a_plan(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], count: int, memory: float
) -> None:
    plan = plan_of(volumes(count, shape, spacing), device_memory_gb=memory)
    assert Plan.from_json(plan.to_json()) == plan
    for part in plan.configurations.values():
        assert next(d.value for d in part.decisions if d.name == "training_memory_gb") <= memory


def test_a_picture_is_planned_in_2d_whichever_axis_is_flat():
    for shape, order in (((1, 320, 256), [0, 1, 2]), ((320, 256, 1), [2, 0, 1])):
        plan = plan_of(fingerprint([case(f"case_{n}", shape, None) for n in range(6)]))
        assert plan.axis_order == order
        assert list(plan.configurations) == ["2d"]
        patch, divisor = plan.default.patch_size, plan.default.network.divisor
        assert all(edge % step == 0 for edge, step in zip(patch, divisor, strict=True))
        assert patch == [320, 256]
