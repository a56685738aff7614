"""selective_scan_fn in all of mamba_ssm's forms, and the compiled extensions, against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loops import close, gradients_of, scan_loop

from medmamba.compat import extensions
from medmamba.compat.selective_scan import selective_scan_fn, selective_scan_ref

KINDS = ("constant", "one group", "groups")


def scan_inputs(length, channels, states, kinds, complex_A=False, seed=0, batch=2):
    """float64 inputs; B and C of the given kinds."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def projection(kind):
        if kind == "constant":
            real = normal(channels, states)
            return torch.complex(real, normal(channels, states)) if complex_A else real
        size = 2 * length if complex_A else length
        return normal(batch, states, size) if kind == "one group" else normal(batch, 2, states, size)

    A = -torch.exp(0.5 * normal(channels, states))
    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length).abs() * 0.5,
        "A": torch.complex(A, 2 * normal(channels, states)) if complex_A else A,
        "B": projection(kinds[0]),
        "C": projection(kinds[1]),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels).abs() * 0.1,
    }


def both(function, values, softplus, dtype=torch.float64):
    """Output, last state and gradients of a function and of the loop."""
    results = []
    for run, kind in ((function, dtype), (None, torch.float64)):
        leaves = {}
        for name, value in values.items():
            to = value.to(kind.to_complex() if value.is_complex() else kind)
            leaves[name] = to.requires_grad_()
        if run is None:
            out = scan_loop(**leaves, delta_softplus=softplus)
        else:
            out = run(**leaves, delta_softplus=softplus, return_last_state=True)
        gradients = gradients_of(out, list(leaves.values()))
        results.append([*out, *gradients])
    return results


@settings(max_examples=25)
@given(st.data())
def test_every_form_of_the_scan_is_the_loop(data):
    draw = data.draw
    length, channels, states = (
        draw(st.sampled_from([1, 2, 7, 33])),
        draw(st.sampled_from([2, 6])),
        draw(st.integers(1, 5)),
    )
    kinds = draw(st.tuples(*[st.sampled_from(KINDS)] * 2))
    complex_A = draw(st.booleans())
    values = scan_inputs(length, channels, states, kinds, complex_A, seed=draw(st.integers(0, 9)))
    for name in ("D", "z", "delta_bias"):
        if draw(st.booleans()):
            del values[name]
    softplus = draw(st.booleans())
    close(*both(selective_scan_fn, values, softplus), 1e-11)
    if not complex_A:
        close(*both(selective_scan_ref, values, softplus), 1e-11)


@pytest.mark.parametrize("complex_A", [False, True])
def test_float32_is_within_1e_5_gradients_included(complex_A):
    values = scan_inputs(70, 4, 8, ("groups", "one group"), complex_A)
    close(*both(selective_scan_fn, values, True, torch.float32), 1e-5)


@pytest.mark.parametrize("way", ["transposed", "every second", "flipped and expanded"])
def test_strides_do_not_change_the_result(way):
    values = {name: value.float() for name, value in scan_inputs(13, 6, 3, ("groups", "one group")).items()}
    if way == "transposed":
        strided = {name: value.transpose(0, -1).contiguous().transpose(0, -1) for name, value in values.items()}
    elif way == "every second":
        strided = {name: value.repeat_interleave(2, -1)[..., ::2] for name, value in values.items()}
    else:
        strided = {name: value.flip(-1).contiguous().flip(-1) for name, value in values.items()}
        values["u"] = values["u"][:1].expand(2, -1, -1).contiguous()
        strided["u"] = values["u"][:1].expand(2, -1, -1)
    assert torch.equal(selective_scan_fn(**strided), selective_scan_fn(**values))


def test_a_mix_of_dtypes_gives_the_dtype_of_u_and_the_right_numbers():
    values = scan_inputs(20, 4, 3, ("groups", "groups"))
    wanted = scan_loop(**values)[0]
    kinds = dict(
        zip(values, (torch.bfloat16, torch.float32, torch.float32, torch.float16, torch.float32) * 2, strict=False)
    )
    mixed = {name: value.to(kinds[name]) for name, value in values.items()}
    found = selective_scan_fn(**mixed)
    assert found.dtype == torch.bfloat16
    close([found], [scan_loop(**{name: value.double() for name, value in mixed.items()})[0]], 1e-2)
    close([found], [wanted], 5e-2)


def test_complex_B_of_the_wrong_length_is_named():
    values = scan_inputs(6, 2, 2, ("one group", "one group"), True)
    values["B"] = values["B"][..., :6]
    with pytest.raises(ValueError, match=r"B must be \(D, N\), or real and \(batch, N, 2 L\)"):
        selective_scan_fn(**values)


def leaves_of(values, dtype=torch.float32):
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


@pytest.mark.parametrize("gated", [True, False])
def test_selective_scan_cuda_returns_what_its_callers_unpack(gated):
    values = leaves_of(scan_inputs(2049 if gated else 40, 4, 3, ("groups", "groups"), batch=1))
    if not gated:
        values["z"] = None
    u, delta, A, B, C, D, z, bias = values.values()
    out, x, *rest = extensions.mamba_fwd(u, delta, A, B, C, D, z, bias, True)
    ungated, last = selective_scan_fn(u, delta, A, B, C, D, None, bias, True, True)
    assert x.shape == (1, 4, 2 if gated else 1, 6)
    close([out, x[:, :, -1, 1::2]], [ungated, last], 1e-6)
    dout = torch.randn_like(out)
    whole = selective_scan_fn(u, delta, A, B, C, D, z, bias, True)
    wanted = torch.autograd.grad(whole, [u, delta, A, B, C, D, bias, *([z] if gated else [])], dout)
    dz = torch.full_like(u, 7.0) if gated else None
    found = extensions.mamba_bwd(u, delta, A, B, C, D, z, bias, dout, x, out, dz, True, gated)
    if gated:
        close([rest[0], found.pop()], [whole, whole], 1e-6)
        assert found[7] is dz
    else:
        assert not rest
    close(found, wanted, 1e-6)


def test_selective_scan_cuda_without_D_and_bias_has_no_gradients_for_them():
    values = leaves_of(scan_inputs(9, 4, 3, ("groups", "groups")))
    u, delta, A, B, C = list(values.values())[:5]
    found = extensions.mamba_bwd(
        u, delta, A, B, C, None, None, None, torch.ones_like(u), None, None, None, False, False
    )
    assert found[5:] == [None, None]


def test_oflex_shares_steps_between_channels_and_answers_in_float32():
    values = scan_inputs(11, 6, 3, ("groups", "groups"))
    u, _, A, B, C, D, _, _ = leaves_of(values).values()
    delta, bias = torch.rand(2, 3, 11, requires_grad=True), torch.rand(3, requires_grad=True)
    half = [value.detach().bfloat16() for value in (u, delta, B, C)]
    out, x = extensions.oflex_fwd(half[0], half[1], A, half[2], half[3], D, bias, True, 1, True)
    assert out.dtype == torch.float32
    core = extensions.core_fwd(half[0], half[1], A, half[2], half[3], D, bias, True, 1)[0]
    assert core.dtype == torch.bfloat16
    close([core], [out], 1e-2)
    whole = selective_scan_fn(
        half[0].float(),
        half[1].float().repeat_interleave(2, 1),
        A,
        half[2],
        half[3],
        D,
        None,
        bias.repeat_interleave(2),
        True,
    )
    close([out], [whole], 1e-6)
    dout = torch.randn(2, 6, 11)
    repeated = selective_scan_fn(u, delta.repeat_interleave(2, 1), A, B, C, D, None, bias.repeat_interleave(2), True)
    wanted = torch.autograd.grad(repeated, [u, delta, A, B, C, D, bias], dout)
    close(extensions.oflex_bwd(u, delta, A, B, C, D, bias, dout, x, True, 1), wanted, 1e-6)


def test_oflex_refuses_steps_that_do_not_divide_the_channels():
    u, _, A, B, C, *_ = scan_inputs(5, 6, 3, ("groups", "groups")).values()
    with pytest.raises(ValueError, match="delta has 4 channels, which do not divide the 6 of u"):
        extensions.oflex_fwd(u, torch.rand(2, 4, 5), A, B, C, None, None, True, 1, True)
