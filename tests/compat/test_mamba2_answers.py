"""Mamba-2's scans and blocks and the single step, against loops in float64, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loops import close, convolution_loop, gradients_of, mamba2_loop, scan_loop
from torch.nn.functional import linear, silu

from medmamba.compat.chunk_scan import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from medmamba.compat.generation import InferenceParams
from medmamba.compat.mamba2 import Mamba2, Mamba2Simple
from medmamba.compat.state_update import selective_state_update


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25)
@given(st.data())
def test_the_chunked_scan_is_the_loop(data):
    draw = data.draw
    length, heads, groups = draw(st.sampled_from([1, 5, 9, 70])), 4, draw(st.sampled_from([1, 2, 4]))
    x, dt = normal(2, length, heads, 3).requires_grad_(), normal(2, length, heads, seed=1).abs().requires_grad_()
    A = (-normal(heads, seed=2).abs()).requires_grad_()
    B, C = (normal(2, length, groups, 5, seed=seed).requires_grad_() for seed in (3, 4))
    given = {}
    if draw(st.booleans()):
        given["D"] = normal(*((heads,) if draw(st.booleans()) else (heads, 3)), seed=5).requires_grad_()
    if draw(st.booleans()):
        given["z"] = normal(2, length, heads, 3, seed=6).requires_grad_()
    if draw(st.booleans()):
        given["dt_bias"] = normal(heads, seed=7).abs().requires_grad_()
    initial = normal(2, heads, 3, 5, seed=8).requires_grad_() if draw(st.booleans()) else None
    samples = torch.tensor([[min(t // 4, 2) for t in range(length)], [(t > 2) + 0 for t in range(length)]])
    samples = samples if draw(st.booleans()) else None
    softplus = draw(st.booleans())
    options = {"initial_states": initial, "seq_idx": samples, "dt_softplus": softplus, "return_final_states": True}
    found = mamba_chunk_scan_combined(x, dt, A, B, C, draw(st.integers(1, 300)), **given, **options)
    wanted = mamba2_loop(x, dt, A, B, C, **given, initial=initial, samples=samples, softplus_dt=softplus)
    leaves = [x, dt, A, B, C, *given.values(), *([] if initial is None else [initial])]
    close([*found, *gradients_of(found, leaves)], [*wanted, *gradients_of(wanted, leaves)], 1e-10)


def test_states_of_samples_and_limits_of_the_step():
    x, dt, A = normal(1, 9, 2, 3), normal(1, 9, 2, seed=1), -normal(2, seed=2).abs()
    B, C = normal(1, 9, 1, 4, seed=3), normal(1, 9, 1, 4, seed=4)
    bounds = torch.tensor([0, 4, 9])
    samples = torch.tensor([[0] * 4 + [1] * 5])
    options = {"dt_limit": (0.1, 0.5), "seq_idx": samples, "cu_seqlens": bounds, "return_varlen_states": True}
    y, states = mamba_chunk_scan_combined(x, dt, A, B, C, 4, **options)
    clamped = dt.clamp(0.1, 0.5)
    close([y], [mamba2_loop(x, clamped, A, B, C, samples=samples)[0]], 1e-10)
    for index, part in enumerate((slice(0, 4), slice(4, 9))):
        close([states[index]], [mamba2_loop(x[:, part], clamped[:, part], A, B[:, part], C[:, part])[1][0]], 1e-10)


def test_float32_and_bfloat16_keep_their_dtype():
    x, dt, A = normal(2, 100, 2, 4), normal(2, 100, 2, seed=1).abs(), -normal(2, seed=2).abs()
    B, C = normal(2, 100, 1, 8, seed=3), normal(2, 100, 1, 8, seed=4)
    wanted = mamba2_loop(x, dt, A, B, C)[0]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        found = mamba_chunk_scan_combined(x.to(dtype), dt.to(dtype), A.float(), B.to(dtype), C.to(dtype), 64)
        assert found.dtype == dtype
        close([found], [wanted], tolerance)


def block_loop(block, u, mlp, samples=None, initial=None):
    """A Mamba-2 block by loops."""
    heads, width, groups, n = block.nheads, block.headdim, block.ngroups, block.d_state
    inner = heads * width
    z0, x0, z, xBC, dt = block.in_proj(u).split([mlp, mlp, inner, inner + 2 * groups * n, heads], -1)
    xBC = convolution_loop(
        xBC.transpose(1, 2), block.conv1d.weight[:, 0], block.conv1d.bias, activation="silu", samples=samples
    ).transpose(1, 2)
    x, B, C = xBC.split([inner, groups * n, groups * n], -1)
    D = block.D.view(heads, width) if block.D.numel() == inner else block.D
    A = -torch.exp(block.A_log)
    x, z = x.unflatten(-1, (heads, width)), z.unflatten(-1, (heads, width))
    B, C = (value.unflatten(-1, (groups, n)) for value in (B, C))
    normed = hasattr(block, "norm")
    y = mamba2_loop(x, dt, A, B, C, D, None if normed else z, block.dt_bias, initial, samples, True)[0]
    y = y.flatten(-2)
    if normed:
        before = getattr(block, "norm_before_gate", False)
        gate = silu(z.flatten(-2))
        y = (y if before else y * gate).unflatten(-1, (groups, -1))
        y = (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * block.norm.weight
        y = y * gate if before else y
    if mlp:
        y = torch.cat([silu(z0) * x0, y], -1)
    return linear(y, block.out_proj.weight, block.out_proj.bias)


CASES = {
    "Mamba2": (Mamba2, {"headdim": 4, "d_state": 3}, 0),
    "Mamba2 in groups": (Mamba2, {"headdim": 4, "d_state": 3, "ngroups": 2, "D_has_hdim": True, "bias": True}, 0),
    "Mamba2 with MLP": (Mamba2, {"headdim": 4, "d_state": 3, "d_ssm": 8, "norm_before_gate": True}, 8),
    "Mamba2 without norm": (Mamba2, {"headdim": 8, "d_state": 3, "rmsnorm": False, "conv_bias": False}, 0),
    "Mamba2Simple": (Mamba2Simple, {"headdim": 4, "d_state": 3, "conv_init": 0.5}, 0),
    "Mamba2Simple with states": (Mamba2Simple, {"headdim": 4, "d_state": 3, "learnable_init_states": True}, 0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("in_samples", [False, True])
def test_a_block_is_the_composition_of_loops(case, in_samples):
    kind, options, mlp = CASES[case]
    block = kind(8, **options).double()
    u = normal(2, 10, 8).requires_grad_()
    samples = torch.tensor([[0] * 3 + [1] * 7, [0] * 10]) if in_samples else None
    initial = None
    if kind is Mamba2Simple and block.learnable_init_states:
        torch.nn.init.normal_(block.init_states)
        initial = block.init_states.expand(2, -1, -1, -1)
    found = block(u, seq_idx=samples)
    wanted = block_loop(block, u, mlp, samples, initial)
    leaves = [u, *block.parameters()]
    close([found, *gradients_of(found, leaves)], [wanted, *gradients_of(wanted, leaves)], 1e-10)


@pytest.mark.parametrize("case", [case for case in CASES if "Simple" not in case])
def test_steps_continue_a_sequence(case):
    block = Mamba2(8, **CASES[case][1], layer_idx=1)
    hidden = normal(2, 7, 8).float()
    state = InferenceParams(max_seqlen=7, max_batch_size=2)
    with torch.no_grad():
        parts = [block(hidden[:, :3], inference_params=state)]
        for position in range(3, 7):
            state.seqlen_offset = position
            parts.append(block(hidden[:, position : position + 1], inference_params=state))
    close([torch.cat(parts, 1)], [block(hidden)], 2e-5)


def test_keys_and_initial_values_are_those_of_the_originals():
    keys = {"A_log", "D", "conv1d.bias", "conv1d.weight", "dt_bias", "in_proj.weight", "norm.weight", "out_proj.weight"}
    block = Mamba2(256)
    assert set(block.state_dict()) == keys
    assert set(Mamba2Simple(256, learnable_init_states=True).state_dict()) == {*keys, "init_states"}
    assert block.in_proj.weight.shape == (2 * 512 + 2 * 128 + 8, 256)
    assert 1 <= block.A_log.exp().min() <= block.A_log.exp().max() <= 16
    steps = torch.nn.functional.softplus(block.dt_bias)
    assert 0.001 <= steps.min() <= steps.max() <= 0.1001
    assert Mamba2(256, D_has_hdim=True).D.shape == (512,)
    flat = block(torch.rand(6, 256), seqlen=3)
    assert flat.shape == (6, 256)


@settings(max_examples=20)
@given(st.data())
def test_a_step_is_a_scan_of_one_position(data):
    draw = data.draw
    heads, groups = draw(st.sampled_from([(0, 1), (2, 1), (4, 2)]))
    axis = (heads,) if heads else ()
    state = normal(2, *axis, 3, 5)
    if draw(st.booleans()):
        state = state.transpose(-1, -2).contiguous().transpose(-1, -2)
    x, dt, z = (normal(2, *axis, 3, seed=seed).abs() for seed in (1, 2, 3))
    A, D, bias = -normal(*axis, 3, 5, seed=4).abs(), normal(*axis, 3, seed=5), normal(*axis, 3, seed=6).abs()
    B, C = (normal(2, *((groups,) if heads else ()), 5, seed=seed) for seed in (7, 8))
    D, z, bias = (value if draw(st.booleans()) else None for value in (D, z, bias))
    softplus = draw(st.booleans())
    old = state.clone()
    found = selective_state_update(state, x, dt, A, B, C, D, z, bias, softplus)
    step = dt if bias is None else dt + bias
    step = torch.nn.functional.softplus(step) if softplus else step
    per_head = [value.repeat_interleave(heads // groups, 1) if heads else value for value in (B, C)]
    new = torch.exp(step.unsqueeze(-1) * A) * old + (step * x).unsqueeze(-1) * per_head[0].unsqueeze(-2)
    y = (new * per_head[1].unsqueeze(-2)).sum(-1)
    y = y if D is None else y + D * x
    close([found, state], [y if z is None else y * silu(z), new], 1e-12)


def test_a_step_of_chosen_rows_leaves_the_others():
    states, rows = normal(4, 3, 5), torch.tensor([2, 0])
    before = states.clone()
    x, dt = normal(2, 3, seed=1), normal(2, 3, seed=2).abs()
    A, B, C = -normal(3, 5, seed=3).abs(), normal(2, 5, seed=4), normal(2, 5, seed=5)
    found = selective_state_update(states, x, dt, A, B, C, state_batch_indices=rows)
    alone = before[rows].clone()
    close([found, states[rows]], [selective_state_update(alone, x, dt, A, B, C), alone], 1e-12)
    assert torch.equal(states[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Mamba2(8, headdim=5), "d_ssm = 16 must be a multiple of headdim = 5"),
        (lambda: Mamba2(8, headdim=8, ngroups=3), "the number of heads = 2 must be a multiple of ngroups = 3"),
        (lambda: Mamba2(8, headdim=8, A_init_range=(0, 1)), "A_init_range must be"),
        (lambda: Mamba2(8, headdim=8, process_group=object()), "process_group"),
        (
            lambda: mamba_chunk_scan_combined(
                torch.rand(1, 4, 2, 3), torch.rand(1, 4, 1), -torch.rand(2), *[torch.rand(1, 4, 1, 5)] * 2, 8
            ),
            r"dt must be \(batch, L, heads\) = \(1, 4, 2\)",
        ),
        (
            lambda: mamba_split_conv1d_scan_combined(
                torch.rand(1, 4, 20), torch.rand(9, 4), None, torch.rand(2), -torch.rand(2), torch.rand(2), 8, headdim=3
            ),
            "which do not fit 2 heads of 3 and 1 groups",
        ),
        (
            lambda: selective_state_update(
                torch.rand(1, 3, 5), torch.rand(1, 4), torch.rand(1, 4), -torch.rand(3, 5), *[torch.rand(1, 5)] * 2
            ),
            "x must be",
        ),
    ],
)
def test_a_wrong_argument_is_named(act, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        act()


def test_both_scans_agree_where_a_head_is_one_channel_wide():
    x, dt = normal(2, 6, 4, 1), normal(2, 6, 4, seed=1).abs()
    A, B, C = -normal(4, seed=2).abs(), normal(2, 6, 2, 3, seed=3), normal(2, 6, 2, 3, seed=4)
    y = mamba_chunk_scan_combined(x, dt, A, B, C, 4)
    u, delta = x[..., 0].transpose(1, 2), dt.transpose(1, 2)
    B, C = (value.permute(0, 2, 3, 1) for value in (B, C))
    close([y[..., 0].transpose(1, 2)], [scan_loop(u, delta, A[:, None].expand(4, 3), B, C)[0]], 1e-11)
