"""State-space duality: golden tensors, a whole Mamba-2 layer, and the loop at awkward lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import golden, relative
from scan_cases import ssd_inputs as inputs
from torch.nn.functional import conv1d, silu, softplus

from medmamba.kernels import ssd_chunked
from medmamba.kernels.state_space_duality.api import ssd_reference, sums_between

MINIMAL, MINIMAL_INFO = golden("ssd_minimal.safetensors")


@pytest.mark.parametrize("case", sorted(MINIMAL_INFO["cases"]))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 5e-6)])
def test_the_chunked_scan_equals_the_golden_tensors(case, dtype, tolerance):
    names = ["X", "A", "B", "C"]
    leaves = {name: MINIMAL[f"{case}/{name}"].to(dtype, copy=True).requires_grad_() for name in names}
    state = None
    if f"{case}/initial_states" in MINIMAL:
        state = MINIMAL[f"{case}/initial_states"][:, 0].to(dtype, copy=True).requires_grad_()
    chunk = MINIMAL_INFO["cases"][case]["block_len"]
    Y, last = ssd_chunked(**leaves, chunk=chunk, initial_state=state, return_last_state=True)
    assert relative(Y, MINIMAL[f"{case}/output"]) <= tolerance
    assert relative(last, MINIMAL[f"{case}/final_state"]) <= tolerance
    loss = (Y * MINIMAL[f"{case}/cotangent"]).sum() + (last * MINIMAL[f"{case}/cotangent_final_state"]).sum()
    loss.backward()
    for name, leaf in leaves.items():
        assert relative(leaf.grad, MINIMAL[f"{case}/grad/{name}"]) <= tolerance, name
    if state is not None:
        assert relative(state.grad, MINIMAL[f"{case}/grad/initial_states"][:, 0]) <= tolerance


def mamba2_layer(p, x, d_state, headdim, ngroups, chunk_size, **_):
    """A whole Mamba-2 layer as published, with our scan in it."""
    heads = p["A_log"].shape[0]
    inner = heads * headdim
    z, xBC, dt = (x @ p["in_proj.weight"].T).split([inner, inner + 2 * ngroups * d_state, heads], -1)
    taps = p["conv1d.weight"].shape[-1]
    xBC = conv1d(xBC.transpose(1, 2), p["conv1d.weight"], p["conv1d.bias"], padding=taps - 1, groups=xBC.shape[-1])
    xBC = silu(xBC.transpose(1, 2)[:, : x.shape[1]])
    u, B, C = xBC.split([inner, ngroups * d_state, ngroups * d_state], -1)
    u = u.unflatten(-1, (heads, headdim))
    dt = softplus(dt + p["dt_bias"])
    B, C = (value.unflatten(-1, (ngroups, d_state)) for value in (B, C))
    y = ssd_chunked(u * dt.unsqueeze(-1), -torch.exp(p["A_log"]) * dt, B, C, chunk=chunk_size)
    y = (y + p["D"].unsqueeze(-1) * u).flatten(-2) * silu(z)
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * p["norm.weight"]
    return y @ p["out_proj.weight"].T


@pytest.mark.parametrize("name", ["mamba2_simple", "mamba2_simple_groups"])
def test_a_whole_mamba2_layer_equals_the_golden_tensors(name):
    tensors, info = golden(f"{name}.safetensors")
    parameters = {
        k.removeprefix("param/"): v.to(torch.float64, copy=True).requires_grad_()
        for k, v in tensors.items()
        if k.startswith("param/")
    }
    x = tensors["input"].to(torch.float64, copy=True).requires_grad_()
    output = mamba2_layer(parameters, x, **info["ctor"])
    assert relative(output, tensors["output"]) <= 1e-6
    (output * tensors["cotangent"]).sum().backward()
    assert relative(x.grad, tensors["grad/input"]) <= 1e-6
    for key, value in parameters.items():
        assert relative(value.grad, tensors[f"grad/param/{key}"]) <= 1e-6, key


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 70), st.sampled_from([(1, 1), (4, 2), (3, 3)]), st.integers(1, 40), st.booleans()
)
def test_any_length_and_chunk_equals_the_loop(batch, length, heads_groups, chunk, with_state):
    heads, groups = heads_groups
    values = inputs(batch, length, heads, 3, groups, 4)
    if not with_state:
        del values["initial_state"]
    Y, last = ssd_chunked(**values, chunk=chunk, return_last_state=True)
    truth, end = ssd_reference(**values)
    assert relative(Y, truth) <= 1e-12
    assert relative(last, end) <= 1e-12


def test_states_are_passed_over_many_chunks_in_levels():
    values = inputs(1, 300, 2, 3, 1, 4, decay=0.02)
    leaves = [value.requires_grad_() for value in values.values()]
    Y, last = ssd_chunked(**values, chunk=2, return_last_state=True)  # 150 chunks: three blocks, the last not full
    truth, end = ssd_reference(**values)
    assert relative(Y, truth) <= 1e-12
    assert relative(last, end) <= 1e-12
    found = torch.autograd.grad(Y.sum() + last.sum(), leaves)
    expected = torch.autograd.grad(truth.sum() + end.sum(), leaves)
    for value, exact in zip(found, expected, strict=True):
        assert relative(value, exact) <= 1e-11


@pytest.mark.parametrize("decay", [1e-6, 50.0, 1e4])
def test_weak_and_total_decay_give_no_nan_and_the_loop_s_result(decay):
    values = inputs(1, 130, 2, 3, 1, 4, decay=decay)
    leaves = {name: value.float().requires_grad_() for name, value in values.items()}
    Y = ssd_chunked(**leaves, chunk=32)
    assert relative(Y.detach(), ssd_reference(**values)[0]) <= 1e-5
    for gradient in torch.autograd.grad(Y.sum(), list(leaves.values())):
        assert gradient.isfinite().all()


def test_sums_between_are_exact_sums_of_the_steps_between():
    A = torch.tensor([1.0, 10.0, 100.0])
    inf = torch.inf
    expected = torch.tensor([[0, -inf, -inf], [10, 0, -inf], [110, 100, 0]])
    assert torch.equal(sums_between(A), expected)


def test_gradients_pass_gradcheck_and_gradgradcheck():
    values = inputs(1, 5, 2, 2, 1, 2)
    leaves = tuple(value.requires_grad_() for value in values.values())

    def run(X, A, B, C, state):
        return ssd_chunked(X, A, B, C, chunk=2, initial_state=state, return_last_state=True)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_it_compiles_without_graph_breaks():
    values = {name: value.float() for name, value in inputs(1, 40, 2, 3, 1, 4).items()}
    compiled = torch.compile(lambda **v: ssd_chunked(**v, chunk=16), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**values), ssd_chunked(**values, chunk=16))


def test_wrong_shapes_are_explained():
    values = inputs(1, 4, 2, 3, 1, 4)
    with pytest.raises(ValueError, match=r"A must be \(batch, L, heads\) = \(1, 4, 2\), it is \(1, 4\)"):
        ssd_chunked(**{**values, "A": values["A"][..., 0]})
    with pytest.raises(ValueError, match="groups dividing 2 heads"):
        ssd_chunked(**{**values, "B": torch.ones(1, 4, 3, 4)})
    with pytest.raises(ValueError, match=r"C must be \(batch, L, groups, n\) = \(1, 4, 1, 4\), it is \(1, 4, 1, 2\)"):
        ssd_chunked(**{**values, "C": values["C"][..., :2]})
    with pytest.raises(ValueError, match="initial_state must be"):
        ssd_chunked(**{**values, "initial_state": torch.ones(1, 2, 4, 3)})
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        ssd_chunked(**values, chunk=0)
    with pytest.raises(RuntimeError, match="'cpp' cannot run: ssd_chunked has no"):
        ssd_chunked(**values, backend="cpp")
    with pytest.raises(RuntimeError, match="'triton' cannot run: the Triton kernels run on CUDA and ROCm tensors"):
        ssd_chunked(**values, backend="triton")


def test_the_loop_runs_when_it_is_asked_for():
    values = inputs(1, 20, 2, 3, 1, 4)
    Y, last = ssd_chunked(**values, backend="reference", return_last_state=True)
    truth, end = ssd_reference(**values)
    assert torch.equal(Y, truth)
    assert torch.equal(last, end)
