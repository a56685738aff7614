"""What a plan says about its numbers is true: each value follows from the stated inputs by the stated rule.

Every rule is carried out here a second time, from the decision's inputs and the numbers that stand in the rule's text.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from planning_cases import case, fingerprint, plan_of, reference_fingerprint, volumes

from medmamba.plans import automatic_choices, grid, network, patch, spacing, training_step
from medmamba.plans.automatic_choices import MASK_BELOW
from medmamba.plans.cost.machines import machine
from medmamba.plans.families import FAMILIES, RESIDUAL_BLOCKS, route_count
from medmamba.plans.normalizers import NORMALIZERS
from medmamba.plans.schema import Configuration, Decision, Plan

LEFT_RIGHT = fingerprint(
    [case(f"case_{n}", (60, 70, 80), (1, 1, 1)) for n in range(8)],
    labels={"background": 0, "kidney_left": 1, "kidney_right": 2},
)
DATASETS: dict[str, Callable[[], Any]] = {
    "small": lambda: reference_fingerprint("mr_hippocampus_tiny"),
    "large, with a low resolution": lambda: reference_fingerprint("ct_abdomen_large"),
    "thick slices": lambda: reference_fingerprint("mr_cardiac_thick_slice"),
    "photographs": lambda: volumes(8, (1, 300, 400), None),
    "one voxel": lambda: volumes(5, (7, 7, 7)),
    "left and right": lambda: LEFT_RIGHT,
}
CHOICES: dict[str, dict[str, Any]] = {
    "by rule": {},
    "little memory": {"device_memory_gb": 2.0},
    "hours": {"train_hours": 2.0, "machine": "cpu:4"},
    "given": {"patch_size": (32, 32, 32), "batch_size": 3},
    "without scan": {"use_scan": False},
}


def cases() -> list[Any]:
    made = [(name, dataset, "by rule") for name, dataset in product(sorted(FAMILIES), DATASETS)]
    made += [(name, "small", choice) for name, choice in product(sorted(FAMILIES), CHOICES) if choice != "by rule"]
    made += [("vm_unet", "large, with a low resolution", "little memory"), ("vm_unet", "left and right", "given")]
    return [
        pytest.param(*one, id="-".join(one)) for one in made if FAMILIES[one[0]].has_scan or one[2] != "without scan"
    ]


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def of(part: Plan | Configuration, name: str) -> Decision | None:
    return next((decision for decision in part.decisions if decision.name == name), None)


def needed(part: Plan | Configuration, name: str) -> Decision:
    found = of(part, name)
    assert found is not None, f"{name} has no decision"
    return found


@pytest.mark.parametrize(("name", "dataset", "choice"), cases())
def test_every_number_of_a_plan_follows_from_its_stated_inputs_by_its_stated_rule(name, dataset, choice):
    images = DATASETS[dataset]()
    plan = plan_of(images, network=name, **CHOICES[choice])
    derive_plan(plan, images)
    for part in plan.configurations.values():
        derive_network(part)
        derive_stem(part)
        derive_batch(part)
        derive_costs(part)
        derive_mirroring(part)
        if "3d" in part.name and of(part, "patch_size").rule != "as given":
            derive_patch(part)
    for decision in (*plan.decisions, *(d for part in plan.configurations.values() for d in part.decisions)):
        assert decision.rule, decision.name
        assert decision.source, decision.name
        assert decision.reason.endswith("."), decision.name


def derive_plan(plan: Plan, images: Any) -> None:
    target = needed(plan, "target_spacing")
    inputs, known = target.inputs, numbers_in(target.rule)
    threshold, _, percentile, above = known
    assert (threshold, percentile, above) == (
        spacing.ANISOTROPY_THRESHOLD,
        spacing.COARSE_AXIS_PERCENTILE,
        spacing.NOT_FINER_BY_MM,
    )
    wanted = list(inputs["median_spacing"])
    axis = max(range(3), key=lambda a: wanted[a])
    others = [a for a in range(3) if a != axis]
    voxels = inputs["median_shape_after_crop"]
    coarsest_other, fewest = max(wanted[a] for a in others), min(voxels[a] for a in others)
    if wanted[axis] > threshold * coarsest_other and threshold * voxels[axis] < fewest:
        low = inputs[f"percentile_{percentile:g}_spacing"][axis]
        wanted[axis] = low if low >= coarsest_other else coarsest_other + above
        if images.has_millimetres:
            assert f"{percentile:g}th percentile: {low:g} mm" in target.reason
            assert ("just above" in target.reason) == (low < coarsest_other)
    elif "at most half" in target.reason:
        assert ((images.spacings > target.value).mean(axis=0) <= 0.5).all()
        assert ((images.spacings < target.value).mean(axis=0) <= 0.5).all()
    assert target.value == pytest.approx(wanted, rel=1e-12)

    order = needed(plan, "axis_order")
    flat = [a for a in range(3) if order.inputs["median_shape_after_crop"][a] == 1]
    first = flat[0] if flat else max(range(3), key=lambda a: order.inputs["target_spacing"][a])
    assert order.value == plan.axis_order == [first, *(a for a in range(3) if a != first)]

    for made, channel in zip(plan.normalization, plan.channel_names, strict=True):
        decision = needed(plan, f"normalization[{channel}]")
        named = [key for key, row in NORMALIZERS.items() if row.channel_name == decision.inputs["channel"].lower()]
        scheme = named[0] if named else "zscore"
        below = decision.inputs["median_relative_size_after_cropping"] < MASK_BELOW
        assert decision.value == {"scheme": scheme, "use_mask": scheme == "zscore" and below}
        assert (made.scheme, made.use_mask) == (scheme, scheme == "zscore" and below)
        if scheme == "zscore":
            assert f"under {MASK_BELOW:.0%}" in decision.rule

    made = needed(plan, "configurations")
    asked, volumes_there = made.inputs["asked_for"], made.inputs["median_shape"][0] != 1
    wanted = ["2d"] if "2d" in asked else []
    if volumes_there and made.inputs["enough_3d_steps_in_the_hours"]:
        low = made.inputs["lowres_steps"] > 0 and made.inputs["lowres_times_fewer_voxels"] >= patch.WORTHWHILE
        wanted += [
            name for name in ["3d_fullres", *(["3d_lowres", "3d_cascade_fullres"] if low else [])] if name in asked
        ]
    assert made.value == list(plan.configurations) == wanted
    assert f"under {patch.COVERAGE:.0%}" in made.rule
    assert f"{patch.WORTHWHILE:g} times fewer" in made.rule

    decided = of(plan, "default_configuration")
    if decided is None:
        assert plan.default_configuration == next(n for n in ("3d_fullres", "2d") if n in plan.configurations)
    else:
        assert f"{patch.COVERAGE:.0%}" in decided.rule

    for key, part in plan.configurations.items():
        shape = needed(part, "median_shape")
        where = shape.inputs["spacing"]
        if key == "3d_lowres":
            full = plan.configurations["3d_fullres"]
            sizes = zip(full.spacing_mm, where, full.median_shape, strict=True)
            assert shape.value == [round(old / new * size) for old, new, size in sizes]
        else:
            axes = plan.axis_order[3 - part.spatial_dims :]
            resampled = [
                [round(c.rule_spacing[a] / new * c.shape_after_crop[a]) for a, new in zip(axes, where, strict=True)]
                for c in images.cases
            ]
            assert shape.value == np.median(resampled, axis=0).tolist()
        dice = needed(part, "batch_dice")
        beside = dice.inputs["beside_low_resolution"]
        assert (
            dice.value == part.batch_dice == {"2d": True, "3d_lowres": False}.get(dice.inputs["configuration"], beside)
        )


def pooled(inputs: dict[str, Any], rule: str) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernels by the rule's text: (edge to halve, factor, edge of a single axis, most halvings, stages)."""
    edge, factor, single, *rest = numbers_in(rule)
    most = rest[0] if inputs["max_pools"] else math.inf
    assert (edge, factor, single) == (
        2 * patch.MIN_EDGE,
        patch.COMPARABLE,
        patch.LONELY_AXIS_EDGES * patch.MIN_EDGE,
    )
    size, space = list(map(float, inputs["patch_size"])), list(inputs["spacing"])
    dims = len(size)
    halvings, three = [0] * dims, [False] * dims
    strides, kernels = [[1] * dims], []
    while True:
        long = [a for a in range(dims) if size[a] >= edge]
        axes = [a for a in long if space[a] < factor * min(space[b] for b in long) and halvings[a] < most]
        if not axes or (len(axes) == 1 and size[axes[0]] < single):
            break
        three = [t or space[a] < factor * min(space) for a, t in enumerate(three)]
        kernels.append([3 if t else 1 for t in three])
        strides.append([2 if a in axes else 1 for a in range(dims)])
        for a in axes:
            halvings[a], space[a], size[a] = halvings[a] + 1, space[a] * 2, math.ceil(size[a] / 2)
    kernels.append([3] * dims)
    strided = inputs["stem"] == "patch"
    while len(strides) < inputs["min_stages"] + strided:
        strides.append([1] * dims)
        kernels.append([3] * dims)
    return strides[strided:], kernels[strided:]


def derive_network(part: Configuration) -> None:
    numbers, family = part.network, FAMILIES[part.network.name]
    dims = part.spatial_dims
    strides = needed(part, "strides")
    assert strides.inputs["patch_size"] == part.patch_size
    wanted, kernels = pooled(strides.inputs, strides.rule)
    assert strides.value == numbers.strides == wanted
    assert f"at least {family.min_stages} stages" in strides.rule
    deepest = max(math.prod(stride[axis] for stride in wanted) for axis in range(dims)).bit_length() - 1
    assert ("a further stage" in strides.reason) == (deepest == family.max_pools)
    assert "scan" not in strides.reason
    if family.has_scan and not numbers.use_scan:
        for kept in ("blocks_per_stage", "routes", "state_size"):
            assert needed(part, kept).reason == network.PAIRED
    assert needed(part, "kernel_sizes").value == numbers.kernel_sizes == kernels
    assert f"factor of {patch.COMPARABLE:g} of" in needed(part, "kernel_sizes").rule

    halved = [max(math.prod(s[a] for s in wanted[: n + 1]) for a in range(dims)) for n in range(len(wanted))]
    features = needed(part, "features_per_stage")
    assert features.inputs["halvings"] == [int(math.log2(edge)) for edge in halved]
    full, half, most = numbers_in(features.rule)
    assert features.value == numbers.features_per_stage
    assert features.value == [
        full if level == 0 else min(half * 2 ** (level - 1), most) for level in features.inputs["halvings"]
    ]
    derive_blocks(part)
    supervised = needed(part, "deep_supervision")
    assert supervised.value == numbers.deep_supervision
    assert supervised.value == (supervised.inputs["stages"] > numbers_in(supervised.rule)[0])
    if not family.has_scan:
        assert not {"routes", "state_size", "use_scan"} & {d.name for d in part.decisions}
        return
    states = needed(part, "state_size")
    two, _, three, _ = (float(n) for n in re.findall(r"\d+", states.rule))
    assert states.value == numbers.state_size == {2: two, 3: three}[states.inputs["spatial_dims"]]
    assert states.inputs["spatial_dims"] == dims
    routes = needed(part, "routes")
    assert routes.value == numbers.routes
    for axes in (2, 3):
        count = route_count(numbers.routes, axes)
        assert routes.inputs[f"routes_in_{axes}d"] == count
        assert f"{count} {'route' if count == 1 else 'routes'} in {axes}D" in routes.rule
    assert needed(part, "use_scan").value == (not needed(part, "use_scan").inputs["left_out"]) == numbers.use_scan


def derive_blocks(part: Configuration) -> None:
    """The rule's own grammar: numbers at full resolution, in every other stage, from a level on, in the coarsest."""
    blocks = needed(part, "blocks_per_stage")
    levels, stem, rule = blocks.inputs["halvings"], blocks.inputs["stem"], blocks.rule
    known = [int(number) for number in numbers_in(rule)]
    last = len(levels) - 1
    if "residual blocks" in rule:
        wanted = known[: len(levels)]
        assert known == list(RESIDUAL_BLOCKS)
    elif "none between" in rule and "halvings" in rule:
        full, other, first = known
        wanted = [
            full if level == 0 else other if level >= first or stage == last else 0
            for stage, level in enumerate(levels)
        ]
    elif "coarsest stage, none between" in rule:
        full, other = known
        wanted = [full if level == 0 and (stage == 0 or stage == last) else 0 for stage, level in enumerate(levels)]
        wanted[last] = full if levels[last] == 0 else other
        if stem == "patch":
            wanted[:last] = [0] * last
    else:
        full, other = known
        assert "in every other stage" in rule
        wanted = [full if level == 0 else other for level in levels]
    assert blocks.value == part.network.blocks_per_stage == wanted


def derive_stem(part: Configuration) -> None:
    stem = needed(part, "stem")
    inputs = stem.inputs
    assert stem.value == part.network.stem
    if "patch_size" in inputs:
        assert stem.value == ("conv" if inputs["full_resolution_fits"] else "patch")
    elif FAMILIES[part.network.name].kind != "scan":
        assert (stem.value, stem.rule) == ("conv", "full-resolution convolutions")
    else:
        view, factor = numbers_in(stem.rule)
        assert (view / 100, factor) == (grid.SMALL_VIEW, grid.WORTH_STRIDING)
        enough = inputs["full_resolution_fits"] and inputs["full_resolution_sees"] >= view / 100
        worth = not enough and (not inputs["full_resolution_fits"] or inputs["strided_times_larger"] >= factor)
        assert stem.value == ("patch" if worth and inputs["strided_fits"] else "conv")


def derive_patch(part: Configuration) -> None:
    """The patch that the search begins with, and the bounds within which it ends."""
    made = needed(part, "patch_size")
    inputs, dims = made.inputs, part.spatial_dims
    edge = re.search(r"content of (\d+)", made.rule)
    least = re.search(r"not below (\d+) voxels", made.rule)
    fraction = re.search(r"at most (\d+)% of the device memory", made.rule)
    assert edge is not None
    assert least is not None
    assert fraction is not None
    scale = (float(edge[1]) ** dims * math.prod(inputs["spacing"])) ** (1 / dims)
    first = [min(round(scale / s), n) for s, n in zip(inputs["spacing"], inputs["median_shape"], strict=True)]
    assert inputs["initial_patch"] == first
    needs, at = inputs["step_bytes_at_batch"]
    assert needs <= float(fraction[1]) / 100 * inputs["device_memory_gb"] * 1e9
    assert (at, int(least[1])) == (training_step.MIN_BATCH, grid.LEAST_EDGE)
    divisor = part.network.divisor
    whole = [math.ceil(n / d) * d for n, d in zip(first, divisor, strict=True)]
    assert all(n <= largest for n, largest in zip(made.value, whole, strict=True))
    if inputs["patches_tried"] == 1:
        assert made.value == whole
    assert made.value == part.patch_size


def derive_batch(part: Configuration) -> None:
    made = needed(part, "batch_size")
    assert made.value == part.batch_size
    if made.rule == "as given":
        assert made.inputs["step_bytes"] <= made.inputs["limit_bytes"]
        return
    inputs = made.inputs
    percent, largest, least = numbers_in(made.rule)
    assert (percent / 100, largest) == (
        training_step.DATASET_FRACTION,
        training_step.REFERENCE_BATCH[part.spatial_dims],
    )
    assert (inputs["largest"], inputs["smallest"]) == (largest, least) == (largest, training_step.MIN_BATCH)
    fits = min(inputs["fits_in_memory_up_to_largest"], inputs.get("of_these_in_hours", largest))
    assert made.value == max(min(fits, inputs["covers_dataset_fraction"], largest), least)
    assert "Memory" not in made.reason  # the search has ended at the largest


def derive_costs(part: Configuration) -> None:
    memory, time = needed(part, "training_memory_gb"), needed(part, "step_seconds")
    assert memory.value == round(max(memory.inputs["bytes_at"].values()) / 1e9, 3)
    known, on = time.inputs, machine(time.inputs["machine"])
    operations = numbers_in(time.rule)[0]
    seconds = (
        operations
        * (known["multiply_accumulates"] / on.macs + known["depthwise_multiply_accumulates"] / on.depthwise_macs)
        + known["scan_updates"] / on.updates
        + known["kept_bytes"] / on.bytes
        + known["weight_bytes"] / on.weight_bytes
        + known["layers"] * on.overhead
    )
    assert time.value == pytest.approx(seconds, rel=6e-3)  # three digits are kept


def derive_mirroring(part: Configuration) -> None:
    made = needed(part, "mirroring")
    sided = made.inputs["pairs"] or made.inputs["one_sided"]
    axis = made.inputs["left_right_patch_axis"]
    wanted = [a for a in range(part.spatial_dims) if not sided or a != axis]
    assert made.inputs["policy"] == "auto"
    assert made.value == part.mirroring.axes == wanted


@pytest.mark.parametrize(("policy", "axes", "words"), [("swap", [0, 1, 2], "exchanged"), ("none", [], "no axis")])
def test_the_rule_of_mirroring_is_that_of_its_policy(policy, axes, words):
    made = needed(plan_of(LEFT_RIGHT, mirror=policy).configurations["3d_fullres"], "mirroring")
    assert made.value == axes
    assert words in made.rule


@pytest.mark.parametrize("hours", [0.02, 0.2, 2.0])
def test_the_default_configuration_follows_from_what_the_patches_see(hours):
    plan = plan_of(reference_fingerprint("mr_cardiac_thick_slice"), train_hours=hours)
    made = needed(plan, "default_configuration")
    sees = made.inputs["patch_sees"]
    if "3d_fullres" in sees:
        part = plan.configurations["3d_fullres"]
        shortened = math.prod(of(part, "patch_size").inputs["patch_for_memory"]) > math.prod(part.patch_size)
        change = shortened and sees["3d_fullres"] < patch.COVERAGE and sees["2d"] > sees["3d_fullres"]
        assert made.value == ("2d" if change else "3d_fullres")


@pytest.mark.parametrize("voxels", [60, 30_000])
def test_the_automatic_network_follows_from_its_inputs(voxels):
    counts = {"background": 64**3 - voxels, "organ": voxels}
    images = fingerprint([case(f"c{n}", (64, 64, 64), label_voxels=counts) for n in range(6)])
    made = needed(plan_of(images, network="auto"), "network")
    across, view, factor = numbers_in(made.rule)
    assert (across, view / 100, factor) == (
        automatic_choices.THIN_VOXELS,
        grid.SMALL_VIEW,
        automatic_choices.BASELINE_SEES,
    )
    thin = min(made.inputs["typical_diameter_voxels"].values()) < across
    if thin:
        diameter, halvings = numbers_in(made.reason)
        assert diameter / 2**halvings <= 1 < diameter / 2 ** (halvings - 1)
    else:
        sees, larger = numbers_in(made.reason)
        assert sees / 100 == pytest.approx(min(made.inputs["scan_patch_sees"], 1), abs=1e-3)
        assert larger == pytest.approx(made.inputs["baseline_patch_larger"], rel=0.05)
    context = made.inputs["scan_patch_sees"] < view / 100 and made.inputs["baseline_patch_larger"] >= factor
    assert made.value == ("hrvmamba" if thin else "plain_unet" if context else "vm_unet")


@pytest.mark.parametrize(
    ("volume", "slice_", "default", "said"),
    [
        (40, 10, "3d_fullres", "still sees enough"),
        (20, 15, "3d_fullres", "no 2D patch sees more"),
        (20, 30, "2d", "too"),
    ],
)
def test_the_reason_of_the_default_configuration_is_what_decided(volume, slice_, default, said):
    plan = plan_of(reference_fingerprint("mr_cardiac_thick_slice"))
    shortened = Decision(
        name="patch_size", value=[], inputs={"patch_for_memory": [100] * 3}, rule=".", reason=".", source="."
    )
    made = {
        "3d_fullres": plan.configurations["3d_fullres"].model_copy(
            update={"patch_size": [10, volume, 10], "median_shape": [10, 100, 10], "decisions": [shortened]}
        ),
        "2d": plan.configurations["2d"].model_copy(update={"patch_size": [slice_, 1], "median_shape": [100, 1]}),
    }
    chosen, (decision,) = automatic_choices.choose_default(made, 1.0)
    assert chosen == default
    assert said in decision.reason
    assert f"3d_fullres {volume}% of its image, 2d {slice_}% of its slice" in decision.reason


@pytest.mark.parametrize(("finest", "above"), [(2.0, False), (0.5, True)])
def test_the_reason_of_thick_slices_names_what_decided(finest, above):
    thick = fingerprint([case(f"c{n}", (200, 200, 20), (1, 1, finest if n < 2 else 5.0)) for n in range(8)])
    reason = needed(plan_of(thick), "target_spacing").reason
    assert ("just above the other spacings" in reason) == above
    derive_plan(plan_of(thick), thick)


CONSTANTS = {
    automatic_choices: {"MASK_BELOW": 0.6, "THIN_VOXELS": 5.0, "BASELINE_SEES": 3.0},
    spacing: {"ANISOTROPY_THRESHOLD": 2.5, "COARSE_AXIS_PERCENTILE": 30.0, "NOT_FINER_BY_MM": 1e-4},
    patch: {"MIN_EDGE": 5, "COMPARABLE": 3.0, "LONELY_AXIS_EDGES": 4, "COVERAGE": 0.4, "WORTHWHILE": 3.0},
    grid: {"SMALL_VIEW": 0.11, "WORTH_STRIDING": 1.25, "LEAST_EDGE": 9, "USABLE_FRACTION": 0.8},
    training_step: {"DATASET_FRACTION": 0.07, "MIN_BATCH": 3, "REFERENCE_BATCH": {2: 9, 3: 4}},
    network: {"SUPERVISED_FROM": 4, "STEM_BLOCKS": 3, "MAX_FEATURES": {2: 300, 3: 200}},
}


@pytest.mark.parametrize(
    ("module", "constant"), [(module, name) for module, names in CONSTANTS.items() for name in names]
)
def test_the_words_follow_when_a_constant_changes(module, constant, monkeypatch):
    old, new = getattr(module, constant), CONSTANTS[module][constant]
    for name, other in list(sys.modules.items()):
        if name.startswith("medmamba.plans.") and getattr(other, constant, None) is old:
            monkeypatch.setattr(other, constant, new)
    if constant == "MASK_BELOW":
        monkeypatch.setitem(globals(), constant, new)
    for dataset in ("thick slices", "large, with a low resolution"):
        images = DATASETS[dataset]()
        plan = plan_of(images)
        derive_plan(plan, images)
        for part in plan.configurations.values():
            derive_network(part)
            derive_stem(part)
            derive_batch(part)
            if "3d" in part.name:
                derive_patch(part)
    test_the_automatic_network_follows_from_its_inputs(60)
    for decision in (*plan.decisions, *(d for part in plan.configurations.values() for d in part.decisions)):
        numbers = set(re.split("[ _-]", f"{' '.join(decision.inputs)} {decision.reason}".lower())) & NUMBER_WORDS
        assert not numbers, (decision.name, numbers)


NUMBER_WORDS = {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twice", "quarter", "percent"}
"""Words of a number that a reason does not write out, because they stay behind when the constant changes."""
