"""causal_conv1d and the norms against loops in float64, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loops import close, convolution_loop, gradients_of
from torch.nn.functional import silu

from medmamba.compat.causal_convolution import (
    causal_conv1d_fn,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
)
from medmamba.compat.gated_norms import LayerNormGated, RMSNormGated, layernorm_fn
from medmamba.compat.norms import AddRMSNorm, layer_norm_fn, layer_norm_linear_fn, layer_norm_ref, rms_norm_fn


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25)
@given(st.data())
def test_the_convolution_is_the_loop(data):
    draw = data.draw
    length, width = draw(st.integers(1, 11)), draw(st.integers(1, 5))
    x, weight = normal(2, 3, length).requires_grad_(), normal(3, width, seed=1).requires_grad_()
    bias = normal(3, seed=2).requires_grad_() if draw(st.booleans()) else None
    activation = draw(st.sampled_from([None, "silu", "swish"]))
    before = samples = None
    if draw(st.booleans()):
        before = normal(2, 3, width - 1, seed=3).requires_grad_()
    elif draw(st.booleans()):
        samples = torch.tensor(
            draw(st.lists(st.lists(st.integers(-1, 2), min_size=length, max_size=length), min_size=2, max_size=2))
        )
    entered = x.transpose(1, 2).contiguous().transpose(1, 2) if draw(st.booleans()) else x
    found = causal_conv1d_fn(entered, weight, bias, samples, before, activation=activation)
    wanted = convolution_loop(x, weight, bias, before, activation, samples)
    leaves = [value for value in (x, weight, bias, before) if value is not None and value.numel()]
    close([found, *gradients_of(found, leaves)], [wanted, *gradients_of(wanted, leaves)], 1e-12)


def test_the_state_after_a_convolution_continues_it():
    x, weight = normal(2, 3, 9), normal(3, 4, seed=1)
    whole = causal_conv1d_fn(x, weight, activation="silu")
    first, state = causal_conv1d_fn(x[..., :5], weight, return_final_states=True, activation="silu")
    second = causal_conv1d_fn(x[..., 5:], weight, initial_states=state, activation="silu")
    close([torch.cat([first, second], -1)], [whole], 1e-12)
    kept = torch.zeros(2, 3, 3, dtype=torch.float64)
    assert causal_conv1d_fn(x[..., :2], weight, return_final_states=True, final_states_out=kept)[1] is kept
    assert torch.equal(kept[..., 0], torch.zeros(2, 3).double())
    assert torch.equal(kept[..., 1:], x[..., :2])


def test_the_signature_before_1_2_is_taken():
    x, weight, bias = normal(1, 3, 6), normal(3, 4, seed=1), normal(3, seed=2)
    assert torch.equal(causal_conv1d_fn(x, weight, bias, "silu"), causal_conv1d_fn(x, weight, bias, activation="silu"))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("kept", [3, 5])
@pytest.mark.parametrize("chunk", [1, 2])
def test_updates_continue_a_convolution(ring, kept, chunk):
    x, weight, bias = normal(2, 3, 8), normal(3, 4, seed=1), normal(3, seed=2)
    whole = causal_conv1d_fn(x, weight, bias, activation="silu")
    state = torch.zeros(2, kept, 3, dtype=torch.float64).transpose(1, 2)  # strides of a state that is kept by position
    parts = []
    for start in range(0, 8, chunk):
        entered = x[..., start] if chunk == 1 else x[..., start : start + chunk]
        seen = torch.full((2,), start, dtype=torch.int32) if ring else None
        y = causal_conv1d_update(entered, state, weight, bias, "silu", cache_seqlens=seen)
        assert y.shape == entered.shape
        parts.append(y.unsqueeze(-1) if chunk == 1 else y)
    close([torch.cat(parts, -1)], [whole], 1e-12)


def test_an_update_of_chosen_rows_leaves_the_others():
    x, weight = normal(2, 3), normal(3, 3, seed=1)
    states = normal(4, 3, 2, seed=2)
    before, rows = states.clone(), torch.tensor([3, 1])
    found = causal_conv1d_update(x, states, weight, conv_state_indices=rows)
    alone = before[rows]
    close([found], [causal_conv1d_update(x, alone, weight)], 1e-12)
    assert torch.equal(states[rows], alone)
    assert torch.equal(states[[0, 2]], before[[0, 2]])


def test_states_of_samples_are_their_last_inputs():
    x = normal(7, 2)
    states = causal_conv1d_varlen_states(x, torch.tensor([0, 2, 7]), 3)
    assert torch.equal(states[0], torch.stack([torch.zeros(2).double(), x[0], x[1]], 1))
    assert torch.equal(states[1], x[4:7].T)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: causal_conv1d_fn(torch.rand(1, 2, 3), torch.rand(2, 4), activation="gelu"), "activation is 'gelu'"),
        (lambda: causal_conv1d_fn(torch.rand(1, 2, 3), torch.rand(3, 4)), r"weight must be \(D, width\) = \(2, 4\)"),
        (lambda: causal_conv1d_fn(torch.rand(2, 3), torch.rand(3, 4)), r"x must be \(batch, D, L\)"),
        (lambda: causal_conv1d_fn(torch.ones(1, 2, 3).long(), torch.rand(2, 4)), "x must be floating point"),
        (
            lambda: causal_conv1d_fn(
                torch.rand(1, 2, 3), torch.rand(2, 4), None, torch.zeros(1, 3), torch.rand(1, 2, 3)
            ),
            "seq_idx cannot be combined",
        ),
        (
            lambda: causal_conv1d_update(torch.rand(1, 2), torch.rand(1, 2, 2), torch.rand(2, 4)),
            "conv_state must be",
        ),
        (lambda: layer_norm_fn(torch.rand(2, 3), torch.rand(4), None), r"weight must be \(3,\) to fit x \(2, 3\)"),
        (lambda: layer_norm_fn(torch.rand(2, 3), torch.rand(3), None, torch.rand(3)), "residual must have the shape"),
        (lambda: layernorm_fn(torch.rand(2, 6), torch.rand(6), None, group_size=4), "group_size divide 6"),
    ],
)
def test_a_wrong_argument_is_named(act, message):
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=message):
        act()


def norm_loop(x, weight, bias, eps, rms):
    x = x if rms else x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return y if bias is None else y + bias


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_a_norm_adds_its_residual_first(rms, second):
    x, residual, x1 = (normal(2, 4, 6, seed=seed).requires_grad_() for seed in range(3))
    weight, bias, weight1, bias1 = (normal(6, seed=seed).requires_grad_() for seed in range(3, 7))
    scale = normal(2, 4, seed=8)
    further = (x1, weight1, bias1) if second else (None, None, None)
    function = rms_norm_fn if rms else layer_norm_fn
    found = function(x, weight, bias, residual, *further, eps=1e-3, prenorm=True, rowscale=None if second else scale)
    total = x + residual + x1 if second else x * scale.unsqueeze(-1) + residual
    wanted = [norm_loop(total, weight, bias, 1e-3, rms), total]
    leaves = [x, residual, weight, bias]
    if second:
        wanted.insert(1, norm_loop(total, weight1, bias1, 1e-3, rms))
        leaves += [x1, weight1, bias1]
    close([*found, *gradients_of(found, leaves)], [*wanted, *gradients_of(tuple(wanted), leaves)], 1e-12)


def test_the_sum_is_kept_in_the_dtype_that_the_original_keeps_it_in():
    x, weight = torch.rand(2, 6).bfloat16(), torch.ones(6).bfloat16()
    y, total = rms_norm_fn(x, weight, None, prenorm=True, residual_in_fp32=True)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert rms_norm_fn(x, weight, None, prenorm=True)[1].dtype == torch.bfloat16
    assert rms_norm_fn(x, weight, None, torch.rand(2, 6), prenorm=True)[1].dtype == torch.float32


def test_dropout_returns_its_mask():
    x, weight = torch.rand(50, 8) + 1, torch.ones(8)
    _y, total, mask, second = layer_norm_fn(x, weight, None, dropout_p=0.5, prenorm=True, return_dropout_mask=True)
    assert second is None
    assert 0.3 < mask.float().mean() < 0.7
    close([total], [torch.where(mask, 2 * x, 0)], 1e-6)


def test_a_norm_with_a_linear_layer_and_as_a_module():
    x, residual = normal(3, 6), normal(3, 6, seed=1)
    weight, linear = normal(6, seed=2), normal(4, 6, seed=3)
    y, total = layer_norm_linear_fn(x, weight, None, linear, None, residual, prenorm=True)
    close([y, total], [layer_norm_ref(x + residual, weight, None) @ linear.T, x + residual], 1e-12)
    module = AddRMSNorm(6, dropout_p=0.5).double().eval()
    assert list(module.state_dict()) == ["weight"]
    close([module(x, residual)], [rms_norm_fn(x, module.weight, None, residual, eps=1e-5)], 1e-12)


@pytest.mark.parametrize("module", [LayerNormGated, RMSNormGated])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_gated_norm_is_its_definition(module, before, groups):
    x, z = normal(2, 3, 8).requires_grad_(), normal(2, 3, 8, seed=1).requires_grad_()
    norm = module(8, group_size=8 // groups, norm_before_gate=before).double()
    torch.nn.init.normal_(norm.weight)
    found = norm(x, z)
    rms = module is RMSNormGated
    entered = x if before else x * silu(z)
    parts = [norm_loop(part, 1, None, 1e-5, rms) for part in entered.chunk(groups, -1)]
    wanted = torch.cat(parts, -1) * norm.weight
    wanted = wanted if rms else wanted + norm.bias
    wanted = wanted * silu(z) if before else wanted
    leaves = [x, z, *norm.parameters()]
    close([found, *gradients_of(found, leaves)], [wanted, *gradients_of(wanted, leaves)], 1e-11)
