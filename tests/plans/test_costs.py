"""Each family has a cost of its own; a network without one is refused with the command that measures it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_cases import plan_of, volumes

from medmamba.errors import ConfigError
from medmamba.networks.build import available_networks
from medmamba.networks.measure_cost import main, measure_cost
from medmamba.networks.planned import hrvmamba
from medmamba.plans.cost.blocks import COSTS, MeasuredCost, register_family
from medmamba.plans.families import DEFORMABLE_FROM, FAMILIES

OURS, PRICED = set(FAMILIES), set(COSTS)


@pytest.fixture
def my_net():
    """A family of another package, forgotten again after the test."""
    yield replace(FAMILIES["segmamba"], name="my_net")
    FAMILIES.pop("my_net", None)
    COSTS.pop("my_net", None)


def test_families_registry_and_costs_have_the_same_names():
    assert OURS == PRICED == set(available_networks())


def test_a_network_without_a_cost_is_not_planned_and_the_command_that_measures_it_is_named(my_net):
    register_family(my_net)
    with pytest.raises(ConfigError) as caught:
        plan_of(volumes(5, (64, 64, 64)), network="my_net")
    assert str(caught.value).startswith(
        "no cost for 'my_net': measure it with `python -m medmamba.networks.measure_cost my_net`, or name the family "
        "it resembles (cost_as=...)"
    )


def test_a_network_may_cost_as_much_as_a_family_that_it_resembles(my_net):
    register_family(my_net, cost_as="segmamba")
    images = volumes(5, (64, 64, 64))
    theirs, ours = (plan_of(images, network=name).default for name in ("my_net", "segmamba"))
    assert (theirs.patch_size, theirs.batch_size) == (ours.patch_size, ours.batch_size)
    costs = [[d.value for d in part.decisions if d.name == "training_memory_gb"] for part in (theirs, ours)]
    assert costs[0] == costs[1]
    with pytest.raises(ConfigError, match="no cost for 'vmunet'"):
        register_family(my_net, cost_as="vmunet")


def test_the_command_measures_what_the_table_says(capsys):
    known = COSTS["mambaout"]
    assert isinstance(known, MeasuredCost)
    for place, cost in measure_cost("mambaout").items():
        assert cost.kept == pytest.approx(known.measured[place].kept, rel=0.02)
        assert cost.weights == pytest.approx(known.measured[place].weights, rel=0.02)
    assert main(["vmunet"]) == 2
    assert "Did you mean 'vm_unet'" in capsys.readouterr().err
    assert main([]) == 2


def test_the_planner_counts_deformable_convolutions_where_the_network_has_them():
    assert hrvmamba.DEFORMABLE_FROM is DEFORMABLE_FROM
