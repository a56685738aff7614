"""Whatever is handed to an operator, it answers as the plain loop does or says which argument is wrong."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import gated_in_segments, scan_inputs, ssd_inputs
from torch import Tensor

from medmamba.kernels import deformable_conv, routed_scan, selective_scan, ssd_chunked


def scan(backend, **values):
    return routed_scan(**values, backend=backend, return_last_state=True)


def compatible(backend, **values):
    return selective_scan(**values, return_last_state=True, backend=backend)


def ssd(backend, **values):
    return ssd_chunked(**values, chunk=3, backend="torch" if backend == "auto" else backend, return_last_state=True)


def deform(backend, **values):
    return (deformable_conv(**values, groups=2, backend=backend),)


def good_inputs(operator) -> dict[str, Tensor]:
    """Small inputs in float32 with every argument given."""
    generator = torch.Generator().manual_seed(0)
    if operator is scan:
        values = gated_in_segments(scan_inputs(2, 5, 2, 3, 2))
    elif operator is ssd:
        values = ssd_inputs(2, 5, 2, 3, 1, 2)
    elif operator is deform:
        shapes = {"value": (2, 3, 4, 6), "offset_mask": (2, 3, 4, 54)}
        values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    else:
        shapes = {"u": (2, 4, 5), "delta": (2, 4, 5), "A": (4, 3), "B": (2, 2, 3, 5), "C": (2, 3, 5), "D": (4,)}
        shapes |= {"z": (2, 4, 5), "delta_bias": (4,)}
        values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        values |= {"A": -values["A"].abs(), **{name: values[name].abs() for name in ("delta", "delta_bias")}}
    return {name: value.float() if value.is_floating_point() else value for name, value in values.items()}


OPERATORS = [scan, compatible, ssd, deform]


def spoil(data, value: Tensor) -> Tensor:
    """The tensor with another shape, dtype or device."""
    how = data.draw(st.sampled_from(["size", "fewer axes", "more axes", "dtype", "device"]))
    axis = data.draw(st.integers(0, value.dim() - 1))
    if how == "size":
        size = data.draw(st.integers(0, 4))
        return value.index_select(axis, torch.arange(size) % value.shape[axis])
    if how == "fewer axes":
        return value.select(axis, 0)
    if how == "more axes":
        return value.unsqueeze(axis)
    if how == "dtype":
        kinds = [torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64, torch.uint8]
        return value.to(data.draw(st.sampled_from(kinds)))
    return value.to("meta")


def outcome(operator, backend, values):
    """The outputs, or the message."""
    try:
        return operator(backend, **values)
    except (TypeError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.filterwarnings("ignore:Casting complex values")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_spoiled_argument_is_named_or_gives_the_loop_s_result(operator, data):
    values = good_inputs(operator)
    name = data.draw(st.sampled_from(sorted(values)))
    values[name] = spoil(data, values[name])
    truth, found = (outcome(operator, backend, values) for backend in ("reference", "auto"))
    if isinstance(truth, str):
        assert found == truth
        assert len(truth.splitlines()) == 1
        assert any(argument in truth for argument in (*values, "groups", "image"))
    else:
        for value, exact in zip(found, truth, strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_strides_also_overlapping_ones_give_the_numbers_of_a_copy(operator, data):
    values = good_inputs(operator)
    name = data.draw(st.sampled_from(sorted(name for name, value in values.items() if value.is_floating_point())))
    shape = values[name].shape
    strides = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=len(shape), max_size=len(shape)))
    memory = values[name].flatten()[torch.arange(500) % values[name].numel()]
    values[name] = memory.as_strided(shape, strides, data.draw(st.integers(0, 3)))
    copied = values | {name: values[name].clone(memory_format=torch.contiguous_format)}
    for value, exact in zip(operator("auto", **values), operator("auto", **copied), strict=True):
        assert torch.equal(value, exact)


@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_not_a_number_spreads_as_far_as_in_the_loop(operator, data):
    values = good_inputs(operator)
    values.pop("segments", None)  # the loop multiplies the state by 0 there, and the kernels forget it
    name = data.draw(st.sampled_from(sorted(name for name, value in values.items() if value.is_floating_point())))
    values[name].view(-1)[data.draw(st.integers(0, values[name].numel() - 1))] = float("nan")
    for value, exact in zip(operator("auto", **values), operator("reference", **values), strict=True):
        found, truth = value.isnan(), exact.isnan()
        if operator is not deform:  # torch operations multiply what they read for corners outside by 0
            assert not (truth & ~found).any()
        if operator is not ssd:  # matrix products multiply later chunks by 0
            assert not (found & ~truth).any()


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_get_gradients_in_their_dtype(operator, dtype):
    values = good_inputs(operator)
    half = {n: v.to(dtype) if v.is_floating_point() else v for n, v in values.items()}
    results = []
    for backend, kind in (("reference", torch.float64), ("auto", dtype)):
        leaves = {n: v.to(kind).requires_grad_() if v.is_floating_point() else v for n, v in half.items()}
        outputs = operator(backend, **leaves)
        wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
        results.append(torch.autograd.grad(sum(value.sum() for value in outputs), wanted))
    for exact, found in zip(*results, strict=True):
        assert found.dtype == dtype
        assert (found - exact).norm() <= 2e-2 * exact.norm()


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_autocast_does_not_lower_the_precision_of_any_operator(operator, backend):
    values = good_inputs(operator)
    expected = operator(backend, **values)
    with torch.autocast("cpu", torch.bfloat16):
        for value, exact in zip(operator(backend, **values), expected, strict=True):
            assert torch.equal(value, exact)


@pytest.mark.parametrize("operator", OPERATORS)
def test_vmap_over_the_first_argument_is_a_loop_with_the_same_results(operator):
    values = good_inputs(operator)
    name = next(iter(values))
    several = torch.stack([values[name], 2 * values[name], -values[name]])
    found = torch.vmap(lambda value: operator("auto", **values | {name: value}))(several)
    for index, value in enumerate(several):
        for result, exact in zip(found, operator("auto", **values | {name: value}), strict=True):
            torch.testing.assert_close(result[index], exact)


@pytest.mark.parametrize(
    "operator", [compatible, deform, pytest.param(ssd, marks=pytest.mark.slow)]
)  # the scan itself: test_scan_torch.py
def test_one_graph_without_breaks_serves_several_sizes(operator):
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3):
        values = good_inputs(operator)
        values = {n: v.repeat_interleave(batch, 0) if v.shape[0] == 2 and v.dim() > 2 else v for n, v in values.items()}
        for result, exact in zip(compiled("auto", **values), operator("auto", **values), strict=True):
            torch.testing.assert_close(result, exact)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_backend_that_cannot_run_is_refused_by_every_operator(operator):
    with pytest.raises(RuntimeError, match=r"Backend 'triton' cannot run: .*CUDA and ROCm tensors, not cpu"):
        operator("triton", **good_inputs(operator))
    with pytest.raises(ValueError, match=r"Unknown backend 'cuda'\. Available: auto"):
        operator("cuda", **good_inputs(operator))


def test_the_compatible_function_names_its_own_arguments():
    values = good_inputs(compatible)
    with pytest.raises(ValueError, match=r"D must be \(D,\) = \(4,\), it is \(3,\)"):
        selective_scan(**values | {"D": torch.ones(3)})
    with pytest.raises(ValueError, match=r"u must be \(batch, D, L\), none of them 0, .* \(2, 4, 0\)"):
        selective_scan(**values | {name: values[name][..., :0] for name in ("u", "delta", "z")})
    with pytest.raises(TypeError, match=r"delta must be floating point, it is torch\.int64"):
        selective_scan(**values | {"delta": values["delta"].long()})


def test_state_space_duality_names_what_it_cannot_take():
    values = good_inputs(ssd)
    with pytest.raises(TypeError, match=r"X must be floating point, it is torch\.int64"):
        ssd_chunked(**values | {"X": values["X"].long()})
    with pytest.raises(ValueError, match="B is on meta and X on cpu"):
        ssd_chunked(**values | {"B": values["B"].to("meta")})
    with pytest.raises(ValueError, match=r"X must be \(batch, L, heads, p\), none of them 0"):
        ssd_chunked(**values | {"X": values["X"][:, :0]})
