"""The pretended GPU notices what a real one would refuse or wait for, and computes with real values."""

import pytest
import torch

pytest.importorskip("triton")

from pretended_gpu import Launch, Wait, pretended_gpus

from medmamba.kernels import routed_scan


def scan_inputs(device: str) -> list[torch.Tensor]:
    """x, dt, A, B and C of a scan of eight positions along two routes."""
    shapes = ((1, 8, 4), (1, 8, 2, 4), (2, 4, 3), (1, 8, 2, 3), (1, 8, 2, 3))
    x, dt, A, B, C = (torch.randn(*shape) for shape in shapes)
    return [tensor.to(device) for tensor in (x, dt, -A.abs(), B, C)]


def test_tensors_of_two_devices_are_refused():
    with pretended_gpus(2):
        first, second, host = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1"), torch.ones(3)
        for other in (second, host):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                first + other
        assert float((first * torch.tensor(2.0)).sum()) == 6  # a number of the host is no tensor of its own
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            first.numpy()


def test_waits_are_noted_with_what_the_host_waits_for():
    with pretended_gpus() as gpu:
        values = torch.arange(6.0, device="cuda")
        assert gpu.waits == []
        assert float(values[2]) == 2
        assert bool(values.sum() > 3)
        assert values[[0, 5]].tolist() == [0, 5]
        assert values[values > 3].shape == (2,)
        values.to("cpu")
        torch.ones(3).to("cuda")
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        values.to("cpu", non_blocking=True)
        whats = [wait.what for wait in gpu.waits]
    expected = ["item", "item", "copy from the host", "copy to the host", "index by a mask"]
    assert whats == [*expected, "copy to the host", "copy from the host"]
    assert Wait("item", "elsewhere") in gpu.waits


def test_gradients_are_those_of_the_cpu():
    torch.manual_seed(0)
    network, image = torch.nn.Conv3d(2, 3, 3), torch.randn(1, 2, 5, 5, 5)
    network(image).square().mean().backward()
    expected = network.weight.grad.clone()
    network.zero_grad()
    with pretended_gpus() as gpu:
        network = network.to("cuda")
        network(image.to("cuda")).square().mean().backward()
        assert torch.equal(network.weight.grad.cpu(), expected)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert network(image.to("cuda")).dtype == torch.bfloat16
        assert gpu.launches == []


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_scan_is_launched_on_the_device_of_its_tensors(device):
    with pretended_gpus(2) as gpu:
        inputs = [tensor.requires_grad_() for tensor in scan_inputs(device)]
        y = routed_scan(*inputs)
        y.square().sum().backward()
        on_cpu = [tensor.detach().cpu().requires_grad_() for tensor in inputs]
        gradients = [tensor.grad.cpu() for tensor in inputs]
        index = int(device[-1])
        assert gpu.launches == [Launch("scan_forward", index, index), Launch("scan_backward", index, index)]
        assert torch.cuda.current_device() == 0  # as it was before
    routed_scan(*on_cpu).square().sum().backward()
    for found, tensor in zip(gradients, on_cpu, strict=True):
        torch.testing.assert_close(found, tensor.grad)


def test_each_device_has_its_own_random_numbers():
    with pretended_gpus(2):
        torch.cuda.set_rng_state(torch.Generator().manual_seed(1).get_state(), "cuda:0")
        torch.cuda.set_rng_state(torch.Generator().manual_seed(1).get_state(), "cuda:1")
        first = [torch.rand(4, device="cuda:0") for _ in range(2)]
        second = torch.rand(4, device="cuda:1")
        assert torch.equal(first[0].cpu(), second.cpu())
        assert not torch.equal(first[0].cpu(), first[1].cpu())
