"""The time model: its counts against the networks that run, what it must never say, what the planner makes of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import DATASETS, plan_of, reference_fingerprint, volumes
from test_memory import planned

from medmamba.errors import ConfigError
from medmamba.networks.build import available_networks
from medmamba.plans.cost.machines import MACHINES, machine
from medmamba.plans.cost.step import StepCost, step_cost
from medmamba.plans.explain import compare, explain_lines, summary_lines
from medmamba.plans.families import FAMILIES
from medmamba.plans.options import LEAST_STEPS, STEP_FRACTION
from medmamba.plans.planner import what_if
from medmamba.plans.schema import NetworkPlan, Plan

CPU = machine("cpu")


def work(network: NetworkPlan, patch, batch: int = 2) -> StepCost:
    return step_cost(network, patch, in_channels=1, out_channels=3, batch_size=batch)


def seconds_of(plan: Plan, name: str) -> float:
    return next(d.value for d in plan.configurations[name].decisions if d.name == "step_seconds")


@pytest.mark.parametrize("patch", [(32, 32, 32), (64, 64)])
@pytest.mark.parametrize("name", available_networks())
def test_products_and_updates_are_those_that_the_network_makes(name: str, patch: tuple[int, ...]) -> None:
    from live_memory import build

    from medmamba.networks.cost import network_cost

    network, size = planned(name, patch)
    network = network.model_copy(update={"deep_supervision": False})  # the counter looks at a network in evaluation
    counted, expected = network_cost(build(network, 1, 3), (2, 1, *size)), work(network, size)
    assert expected.updates == pytest.approx(counted.scan_steps, rel=0.1)  # MATE's review tokens are left out
    if name != "hrvmamba":  # the counter does not know deformable convolutions, which count as many depthwise ones
        assert expected.macs + expected.depthwise_macs == pytest.approx(counted.macs, rel=0.1)


@given(
    name=st.sampled_from(sorted(FAMILIES)),
    dims=st.sampled_from([2, 3]),
    edges=st.tuples(*[st.integers(1, 6)] * 3),
    axis=st.integers(0, 2),
    batch=st.integers(1, 8),
    on=st.sampled_from(sorted(MACHINES)),
    wider=st.integers(1, 5),
)
def test_more_of_anything_is_never_faster(name, dims, edges, axis, batch, on, wider) -> None:
    network, _ = planned(name, (32,) * dims)
    patch = [32 * edge for edge in edges[:dims]]
    larger = list(patch)
    larger[axis % dims] += 32
    broad = network.model_copy(update={"features_per_stage": [16 * wider + f for f in network.features_per_stage]})
    least = work(network, patch, batch).seconds(machine(on))
    assert 0 < least < work(network, larger, batch).seconds(machine(on))
    assert least < work(network, patch, batch + 1).seconds(machine(on))
    assert least < work(broad, patch, batch).seconds(machine(on))


def test_a_scan_costs_time_and_bf16_saves_it() -> None:
    with_scan, patch = planned("vm_unet", (64, 64, 64))
    without, _ = planned("vm_unet", (64, 64, 64), use_scan=False)
    assert work(without, patch).seconds(CPU) < work(with_scan, patch).seconds(CPU)
    assert work(with_scan, patch).seconds(CPU) < work(with_scan, patch).seconds(machine("cpu-fp32"))
    assert work(with_scan, patch).seconds(machine("cpu:4")) < work(with_scan, patch).seconds(CPU) / 2


@pytest.mark.parametrize("name", DATASETS)
def test_time_decides_nothing_unless_hours_are_given(name: str) -> None:
    here, there = (plan_of(reference_fingerprint(name), machine=on) for on in ("cpu", "h100"))
    assert {field.split(".")[-1] for field, _, _ in compare(here, there)} <= {"step_seconds"}
    plenty = plan_of(reference_fingerprint(name), train_hours=1e6)
    assert compare(here, plenty) == []


@pytest.mark.parametrize(
    ("name", "hours"), [*((name, 1.0) for name in DATASETS), ("mr_cardiac_thick_slice", 0.05), ("ct_lung", 20.0)]
)
def test_enough_steps_fit_into_the_hours_on_every_reference_dataset(name: str, hours: float) -> None:
    plan = plan_of(reference_fingerprint(name), train_hours=hours)
    for part in plan.configurations:
        assert LEAST_STEPS * seconds_of(plan, part) <= 1.01 * STEP_FRACTION * hours * 3600


def test_the_same_hours_give_the_same_plan() -> None:
    first, again = (plan_of(reference_fingerprint("mr_cardiac_thick_slice"), train_hours=0.05) for _ in range(2))
    assert first.to_json() == again.to_json()


def test_fewer_hours_never_mean_a_larger_patch() -> None:
    before = math.inf
    for hours in (10, 1, 0.2):
        plan = plan_of(reference_fingerprint("ct_lung"), train_hours=hours)
        patch = math.prod(plan.configurations["3d_fullres"].patch_size)
        assert patch <= before
        before = patch


def test_four_minutes_for_thick_slices_choose_2d_as_the_measurement_did() -> None:
    images = volumes(48, (230, 229, 9), (1.35, 1.35, 8.0))  # the left ventricle of docs/benchmarks/accuracy.md
    plan, free = plan_of(images, train_hours=240 / 3600), plan_of(images)
    assert (free.default.name, plan.default.name) == ("3d_fullres", "2d")
    assert plan.default.patch_size[0] >= 192
    assert plan.default.batch_size == 2
    made = next(d for d in plan.decisions if d.name == "default_configuration")
    assert "The hours shorten the patch of 3d_fullres too much: 3d_fullres" in made.reason


def test_small_images_stay_in_3d_for_minutes() -> None:
    plan = plan_of(reference_fingerprint("mr_hippocampus_tiny"), train_hours=330 / 3600)
    assert (plan.default.name, plan.default.patch_size) == ("3d_fullres", [40, 56, 40])


def test_the_rules_of_time_are_named_with_their_inputs() -> None:
    images = volumes(20, (200, 200, 120))
    now = plan_of(images)
    then = what_if(now, images, train_hours=0.2, machine="cpu-fp32")
    assert then.options is not None
    assert (then.options.train_hours, then.options.machine) == (0.2, "cpu-fp32")
    text = "\n".join(explain_lines(then))
    assert "and 500 steps take 90% of the hours" in text
    assert "train_hours 0.2, least_steps 500, machine cpu-fp32, patch_for_memory" in text
    assert "default_configuration = " in text
    assert "On cpu-fp32 a step takes about" in text
    assert "an epoch of 250 steps" in "\n".join(summary_lines(then))
    fields = {field for field, _, _ in compare(now, then)}
    assert {"3d_fullres.patch_size", "3d_fullres.step_seconds"} <= fields


def test_a_gpu_that_was_not_measured_says_so() -> None:
    plan = plan_of(volumes(5, (64, 64, 64)), machine="a100")
    made = next(d for d in plan.default.decisions if d.name == "step_seconds")
    assert "not measured" in made.inputs["rates"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"train_hours": 0.0}, "--train-hours 0.0 must be above 0"),
        ({"train_hours": float("inf")}, "--train-hours inf must be a finite number"),
        ({"machine": "a10"}, "Unknown machine 'a10'. Did you mean 'a100'"),
        ({"machine": "cpu:0"}, "a number of threads follows a CPU only, as cpu:4"),
        ({"machine": "h100:2"}, "a number of threads follows a CPU only, as cpu:4"),
        (
            {"train_hours": 0.05, "patch_size": (96, 96, 96)},
            r"patch size 96x96x96: .* needs [\d.]+ hours for 500 steps on cpu, --train-hours is 0.05. Nearest .*: \d+x",
        ),
        (
            {"train_hours": 0.05, "patch_size": (32, 32, 32), "batch_size": 50, "configurations": ["3d_fullres"]},
            r"batch size 50: .* needs [\d.]+ hours for 500 steps on cpu, --train-hours is 0.05. Largest that fits: \d+",
        ),
    ],
)
def test_impossible_times_are_refused_with_the_nearest_possible(choices: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(volumes(10, (160, 160, 160)), **choices)


def test_the_least_hours_that_are_named_are_enough() -> None:
    images = volumes(10, (160, 160, 160))
    with pytest.raises(ConfigError, match=r"even a patch of 8x8 .* needs [\d.]+ hours for 500 steps") as caught:
        plan_of(images, train_hours=1e-4)
    hours = float(str(caught.value).split(" hours for")[0].rsplit(" ", 1)[1])
    plan = plan_of(images, train_hours=hours)
    assert plan.default.name == "2d"
    assert list(plan.configurations) == ["2d"]
    assert "only 2D is planned" in next(d.reason for d in plan.decisions if d.name == "configurations")
