"""The scan as a citizen of PyTorch: operator checks, torch.compile, second derivatives."""

import pytest
import torch
from scan_cases import gated_in_segments, scan_inputs

from medmamba.kernels import routed_scan
from medmamba.kernels.library import missing_reason
from medmamba.kernels.scan.reference import ScanInputs

TENSORS = ScanInputs._fields[:-2]  # without softplus and merge

pytestmark = pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason()))


def leaves(*shape, merge=True):
    inputs = gated_in_segments(scan_inputs(*shape), merge)
    return {
        name: value.float().requires_grad_() if value.is_floating_point() else value.int()
        for name, value in inputs.items()
    }


EVERYTHING_OPTIONAL = ("D", "dt_bias", "routes", "initial_state", "z", "segments")


@pytest.mark.parametrize(
    ("left_out", "merge"),
    [
        ((), True),
        (EVERYTHING_OPTIONAL, False),
        pytest.param((), False, marks=pytest.mark.slow),
        pytest.param(EVERYTHING_OPTIONAL, True, marks=pytest.mark.slow),
    ],
)
def test_the_operators_pass_opcheck(left_out, merge):
    from medmamba.kernels.scan.compiled import routed_scan_cpp, routed_scan_cpp_backward

    inputs = leaves(2, 20, 2, 5, 3, merge=merge)
    arguments = [None if name in left_out else inputs[name] for name in TENSORS]
    torch.library.opcheck(routed_scan_cpp, (*arguments, True, merge, True))
    plain = [None if value is None else value.detach() for value in arguments]
    y, last, *saved = routed_scan_cpp(*plain, True, merge, True)
    cotangents = torch.randn_like(y), torch.randn_like(last)
    torch.library.opcheck(routed_scan_cpp_backward, (*cotangents, *plain, True, merge, True, *saved))


def block(x, *arguments, **named):
    y = routed_scan(torch.nn.functional.silu(x), *arguments, **named)
    return (y * y).sum()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_graph_breaks_gives_the_same_bits(backend):
    inputs = leaves(2, 50, 2, 12, 4)
    names = [name for name, value in inputs.items() if value.requires_grad]
    expected = torch.autograd.grad(block(**inputs), [inputs[name] for name in names])
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for value, truth in zip(
        torch.autograd.grad(compiled(**inputs), [inputs[name] for name in names]), expected, strict=True
    ):
        assert torch.equal(value, truth)


@pytest.mark.slow
def test_inductor_compiles_a_block_around_the_scan():
    inputs = leaves(2, 50, 2, 12, 4)
    compiled = torch.compile(block, fullgraph=True)
    (value,) = torch.autograd.grad(compiled(**inputs), [inputs["x"]])
    (truth,) = torch.autograd.grad(block(**inputs), [inputs["x"]])
    torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4)


def test_one_compiled_graph_serves_several_sizes():
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (20, 33, 70):
        inputs = leaves(2, length, 2, 12, 4)
        (value,) = torch.autograd.grad(compiled(**inputs), [inputs["x"]])
        (truth,) = torch.autograd.grad(block(**inputs), [inputs["x"]])
        assert torch.equal(value, truth)


def test_second_derivatives_are_refused_with_a_way_out():
    inputs = leaves(1, 8, 1, 2, 2)
    (gradient,) = torch.autograd.grad(block(**inputs), [inputs["x"]], create_graph=True)
    with pytest.raises(RuntimeError, match=r'no second derivative.*Use backend="torch"'):
        gradient.sum().backward()


def test_without_gradients_no_states_are_kept():
    from medmamba.kernels.scan.compiled import routed_scan_cpp

    inputs = {name: value.detach() for name, value in leaves(1, 200, 1, 16, 16).items()}
    _, _, saved, plain = routed_scan_cpp(*(inputs[name] for name in TENSORS), True, True, False)
    assert saved.numel() == plain.numel() == 0


def test_only_the_wanted_gradients_are_needed():
    inputs = {name: value.detach() for name, value in leaves(1, 20, 2, 6, 3).items()}
    inputs["D"].requires_grad_()
    del inputs["z"]
    routed_scan(**inputs).sum().backward()
    torch.testing.assert_close(inputs["D"].grad, inputs["x"].sum((0, 1)).expand(2, -1), rtol=1e-5, atol=1e-5)
