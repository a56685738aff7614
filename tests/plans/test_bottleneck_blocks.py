"""u_mamba_bot plans the blocks that it has; plans of earlier versions, which list more, build the same network."""

from __future__ import annotations

from planning_cases import plan_of, volumes

from medmamba.models.network import network_arguments
from medmamba.networks.build import build_network

IMAGES = volumes(5, (64, 64, 64))


def test_a_plan_of_before_builds_the_same_network():
    plan = plan_of(IMAGES, network="u_mamba_bot")
    now = plan.default
    stages = len(now.network.strides)
    assert now.network.blocks_per_stage == [2, *([0] * (stages - 2)), 1]
    listed = [2, *([1] * (stages - 1))]
    before = now.model_copy(update={"network": now.network.model_copy(update={"blocks_per_stage": listed})})
    shapes = [
        {name: value.shape for name, value in build_network(**network_arguments(plan, part)).state_dict().items()}
        for part in (now, before)
    ]
    assert shapes[0] == shapes[1]
    ours = [network_arguments(plan, part, network="vm_unet")["blocks_per_stage"] for part in (now, before)]
    assert ours[0] == ours[1] == [2, 0, *([1] * (stages - 2))]  # its own, whichever of the two the plan lists
