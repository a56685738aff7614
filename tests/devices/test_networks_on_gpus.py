"""Every planned network computes on a GPU in every precision: on its own device, without a wait for the host."""

import pytest
import torch

pytest.importorskip("triton")

from pretended_gpu import pretended_gpus

from medmamba.compute.device import casting
from medmamba.networks import available_networks, build_network


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", available_networks())
def test_it_stays_on_its_device(name, dims):
    strides = [[1] * dims, [1] + [2] * (dims - 1), [2] * dims]
    numbers = {"strides": strides, "features_per_stage": [8, 16, 16], "deep_supervision": True}
    network = build_network(name, spatial_dims=dims, in_channels=2, out_channels=3, **numbers)
    image = torch.randn(2, 2, *(7, 9, 5)[:dims])
    with pretended_gpus(2) as gpu:
        device = torch.device("cuda:1")
        network, image = network.to(device), image.to(device)
        for precision in ("fp32", "bf16", "fp16"):
            if precision != "fp32":
                gpu.forget()  # tables of routes are made once
            network.zero_grad()
            with casting(precision, device):
                outputs = network(image)
            sum(output.float().square().mean() for output in outputs).backward()
            assert {parameter.grad.device for parameter in network.parameters()} == {device}
            assert {launch.current for launch in gpu.launches} <= {1}
            if precision != "fp32":
                assert gpu.waits == []
