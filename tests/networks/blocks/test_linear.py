"""The product through oneDNN is torch's linear, in values, gradients and surroundings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medmamba.networks.blocks.linear import Linear, linear
from medmamba.networks.cost import network_cost


def values_and_gradients(function, x, weight, bias):
    leaves = [value for value in (x, weight, bias) if value is not None]
    y = function(x, weight, bias)
    cotangent = torch.arange(y.numel()).remainder(7).sub(3).reshape(y.shape)  # the same numbers in every type
    return [y.detach(), *torch.autograd.grad((y * cotangent).sum(), leaves)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 80),
    st.integers(1, 80),
    st.booleans(),
    st.booleans(),
)
def test_values_and_gradients_equal_torchs_in_float64(rows, fan_in, fan_out, biased, sliced):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x = (
        normal(*rows, 2 * fan_in)[..., :fan_in] if sliced else normal(*rows, fan_in)
    )  # a slice has gaps between its rows
    weight, bias = normal(fan_out, fan_in), normal(fan_out) if biased else None
    single = [None if value is None else value.clone().requires_grad_() for value in (x, weight, bias)]
    single[0] = x.detach().requires_grad_()  # clone would close the gaps
    double = [None if value is None else value.detach().double().requires_grad_() for value in (x, weight, bias)]
    truth = values_and_gradients(F.linear, *double)
    for value, expected in zip(values_and_gradients(linear, *single), truth, strict=True):
        size = max(expected.norm().item(), expected.numel() ** 0.5)
        assert (value.double() - expected).norm().item() <= 1e-5 * size


def test_second_derivatives_equal_torchs():
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    found = []
    for function in (linear, F.linear):
        (first,) = torch.autograd.grad(function(x, weight).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 0, 4)], ids=str)
def test_inputs_without_rows_are_left_to_torch(shape):
    layer = Linear(4, 3)
    assert layer(torch.zeros(shape)).shape == (*shape[:-1], 3)


def test_autocast_decides_the_type_as_for_torchs_own_layer():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(4, 3)(torch.ones(2, 4)).dtype == torch.bfloat16


def test_products_are_counted():
    assert network_cost(Linear(8, 16), (10, 8)).macs == 10 * 8 * 16


def test_compiled_traced_scripted_and_exported_it_is_torchs_linear():
    layer, x = Linear(4, 3), torch.randn(2, 4)
    expected = F.linear(x, layer.weight, layer.bias)
    for form in (
        torch.compile(layer, fullgraph=True, backend="eager"),
        torch.jit.trace(layer, x),
        torch.export.export(layer, (x,)).module(),
        torch.jit.script(layer),
    ):
        torch.testing.assert_close(form(x), expected)
