"""Mamba-3's scan against golden values, a loop in float64, and Mamba-2's scan where both are the same."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mamba3_golden import CASES, FILE, by_matrix, by_recurrence, inputs
from safetensors.torch import load_file

from medmamba.kernels import available_backends, mamba3_scan
from medmamba.kernels.state_space_duality.api import ssd_reference


def golden(name):
    return {key.split("/")[1]: value for key, value in load_file(FILE).items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize("name", CASES)
def test_both_derivations_still_give_the_golden_values(name):
    values = {key: value.numpy() for key, value in golden(name).items()}
    assert all(np.array_equal(value, values[key]) for key, value in inputs(name).items())
    for derive in (by_recurrence, by_matrix):
        assert np.abs(derive(values) - values["y"]).max() < 1e-12 * np.abs(values["y"]).max()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_scan_gives_the_golden_values(name, backend):
    values = golden(name)
    y = values.pop("y")
    assert (mamba3_scan(**values, backend=backend) - y).abs().max() < 1e-11 * y.abs().max()
    single = mamba3_scan(**{key: value.float() for key, value in values.items()}, backend=backend)
    assert single.dtype == torch.float32
    assert (single - y).abs().max() < 1e-5 * y.abs().max()


def random_inputs(batch, length, heads, ranks, p, n, m, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = normal(batch, length, heads).exp() * 0.3
    values = {
        "x": normal(batch, length, heads, ranks, p),
        "B": normal(batch, length, heads, ranks, n),
        "C": normal(batch, length, heads, ranks, n),
        "dt": dt,
        "decay": -dt * normal(batch, length, heads).abs(),
        "mix": normal(batch, length, heads).sigmoid(),
        "turn": normal(batch, length, heads, m),
        "D": normal(heads),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


@settings(max_examples=25)
@given(st.data())
def test_the_duality_is_the_loop_gradients_included(data):
    draw = data.draw
    length, ranks, n = draw(st.sampled_from([1, 2, 9, 40])), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    m = draw(st.integers(0, n // 2))
    values = random_inputs(2, length, 2, ranks, draw(st.integers(1, 3)), n, m, draw(st.integers(0, 99)))
    chunk = draw(st.sampled_from([1, 4, 64]))
    found = mamba3_scan(**values, chunk=chunk)
    wanted = mamba3_scan(**values, backend="reference")
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaves = list(values.values())
    both = [[y, *torch.autograd.grad((y * weight).sum(), leaves)] for y in (found, wanted)]
    for one, other in zip(*both, strict=True):
        assert (one - other).abs().max() <= 1e-10 * other.abs().max().clamp(min=1e-3) if other.numel() else True


@pytest.mark.parametrize(("ranks", "backend"), [(2, "torch"), (1, "torch"), (1, "cpp")])
def test_float32_gradients_are_within_1e_5(ranks, backend):
    if backend == "cpp" and backend not in available_backends():
        pytest.skip("the C++ library is not built")
    values = random_inputs(2, 50, 2, ranks, 4, 8, 4, 0)
    single = {name: value.detach().float().requires_grad_() for name, value in values.items()}
    grads = [
        torch.autograd.grad(mamba3_scan(**given, backend=backend).square().sum(), list(given.values()))
        for given, backend in ((single, backend), (values, "reference"))
    ]
    for one, other in zip(*grads, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_without_a_start_of_steps_and_turns_it_is_mamba2():
    values = {name: value.detach() for name, value in random_inputs(1, 20, 2, 1, 3, 4, 0, 1).items()}
    values["mix"] = torch.ones_like(values["mix"])
    del values["D"]
    y = mamba3_scan(**values)[:, :, :, 0]
    X = values["x"][:, :, :, 0] * values["dt"].unsqueeze(-1)
    wanted = ssd_reference(X, values["decay"], values["B"][:, :, :, 0], values["C"][:, :, :, 0])[0]
    assert (y - wanted).abs().max() < 1e-12


def test_angles_of_long_sequences_stay_exact_in_float32():
    """Sums of angles that float32 cannot hold: a turn of a third of a circle, 6000 times, is none."""
    length = 6001
    values = {
        "x": torch.zeros(1, length, 1, 1, 1),
        "B": torch.tensor([1.0, 0.0]).expand(1, length, 1, 1, 2),
        "C": torch.tensor([1.0, 0.0]).expand(1, length, 1, 1, 2),
        "dt": torch.ones(1, length, 1),
        "decay": torch.zeros(1, length, 1),
        "mix": torch.ones(1, length, 1),
        "turn": torch.full((1, length, 1, 1), 2 * math.pi / 3, dtype=torch.float32),
    }
    values["x"][0, 0] = 1.0
    y = mamba3_scan(**values)[0, :, 0, 0, 0]
    exact = np.cos(float(values["turn"][0, 0, 0, 0]) * np.arange(length))
    assert (y.double() - torch.from_numpy(exact)).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turn": torch.rand(2, 9, 2, 3)}, "turn has 3 angles, which turn more than the n = 4"),
        ({"dt": torch.rand(2, 9, 1)}, r"dt must be \(batch, L, heads\) = \(2, 9, 2\)"),
        ({"x": torch.rand(2, 9, 2, 3)}, r"x must be \(batch, L, heads, ranks, p\)"),
        ({"D": torch.ones(2).long()}, "D must be floating point"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    values = golden("one input")
    del values["y"]
    with pytest.raises((TypeError, ValueError), match=message):
        mamba3_scan(**{**values, **change})


def test_several_ranks_have_no_cpp_kernel():
    values = golden("several inputs")
    del values["y"]
    with pytest.raises(ValueError, match='backend "cpp" scans one rank, x has 3: use "torch"'):
        mamba3_scan(**values, backend="cpp")


def test_first_and_second_derivatives_by_finite_differences():
    values = list(random_inputs(1, 4, 1, 2, 2, 3, 1, 5).values())
    assert torch.autograd.gradcheck(mamba3_scan, values)
    assert torch.autograd.gradgradcheck(mamba3_scan, values)
