"""The Mamba block in all directions, against compositions of loops in float64; its steps and its initial values."""

import math

import pytest
import torch
from plain_loops import close, convolution_loop, gradients_of, scan_loop
from torch.nn.functional import linear

from medmamba.compat.generation import InferenceParams
from medmamba.compat.mamba import Mamba
from medmamba.compat.selective_scan import bimamba_inner_fn, bimamba_inner_ref, mamba_inner_fn, mamba_inner_ref


def direction(block, xz, suffix="", A=None):
    """One direction of a block from (batch, 2 D, L) to (batch, D, L), by loops."""
    own = {name: getattr(block, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj", "D")}
    A = -torch.exp(getattr(block, f"A{suffix}_log") if suffix else block.A_log) if A is None else A
    x, z = xz.chunk(2, 1)
    x = convolution_loop(x, own["conv1d"].weight[:, 0], own["conv1d"].bias, activation="silu")
    projected = linear(x.transpose(1, 2), own["x_proj"].weight)
    dt, B, C = projected.split([block.dt_rank, block.d_state, block.d_state], -1)
    dt = linear(dt, own["dt_proj"].weight)
    dt, B, C = (value.transpose(1, 2) for value in (dt, B, C))
    return scan_loop(x, dt, A, B, C, own["D"], z, own["dt_proj"].bias, True)[0]


def block_loop(block, hidden):
    """The whole block by loops."""
    xz = linear(hidden, block.in_proj.weight, block.in_proj.bias).transpose(1, 2)
    y = direction(block, xz)
    if block.bimamba_type == "v1":  # the second scan shares the convolution, which is not turned
        x, z = xz.chunk(2, 1)
        x = convolution_loop(x, block.conv1d.weight[:, 0], block.conv1d.bias, activation="silu")
        dt, B, C = linear(x.transpose(1, 2), block.x_proj.weight).split(
            [block.dt_rank, block.d_state, block.d_state], -1
        )
        dt = linear(dt, block.dt_proj.weight)
        turned = [value.transpose(1, 2).flip(-1) for value in (dt, B, C)]
        A = -torch.exp(block.A_b_log)
        back = scan_loop(x.flip(-1), turned[0], A, *turned[1:], block.D, z.flip(-1), block.dt_proj.bias, True)[0]
        y = y + back.flip(-1)
    if block.bimamba_type in ("v2", "v3"):
        y = y + direction(block, xz.flip(-1), "_b").flip(-1)
    if block.bimamba_type == "v3":
        length, slices = xz.shape[-1], block.nslices
        order = torch.tensor([s * (length // slices) + j for j in range(length // slices) for s in range(slices)])
        inter = torch.empty_like(y)
        inter[..., order] = direction(block, xz[..., order], "_s")
        y = y + inter
    y = y.transpose(1, 2)
    out = linear(y / 2 if block.if_divide_out else y, block.out_proj.weight, block.out_proj.bias)
    return out if block.init_layer_scale is None else out * block.gamma


CASES = {
    "none": {},
    "none, biases, layer scale": {"bias": True, "conv_bias": False, "init_layer_scale": 0.5, "d_conv": 3},
    "v1": {"bimamba_type": "v1"},
    "v2": {"bimamba_type": "v2"},
    "v2 halved": {"bimamba_type": "v2", "if_divide_out": True, "use_fast_path": False},
    "v3": {"bimamba_type": "v3", "nslices": 3},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_block_is_the_composition_of_loops(case, dtype):
    block = Mamba(10, d_state=4, **CASES[case]).double()
    hidden = torch.randn(2, 12, 10, dtype=torch.float64, requires_grad=True)
    parameters = list(block.parameters())
    wanted_y = block_loop(block, hidden)
    wanted = gradients_of(wanted_y, [hidden, *parameters])
    copy = Mamba(10, d_state=4, **CASES[case])
    copy.load_state_dict(block.state_dict())
    copy = copy.to(dtype)
    entered = hidden.detach().to(dtype).requires_grad_()
    found_y = copy(entered)
    found = gradients_of(found_y, [entered, *copy.parameters()])
    close([found_y, *found], [wanted_y, *wanted], 1e-11 if dtype == torch.float64 else 2e-5)


def test_keys_of_the_state_dicts_are_those_of_the_originals():
    base = ["A_log", "D", "conv1d.bias", "conv1d.weight", "dt_proj.bias", "dt_proj.weight", "in_proj.weight"]
    base += ["out_proj.weight", "x_proj.weight"]
    second = ["A_{0}_log", "D_{0}", "conv1d_{0}.bias", "conv1d_{0}.weight", "dt_proj_{0}.bias", "dt_proj_{0}.weight"]
    second += ["x_proj_{0}.weight"]

    def keys(**options):
        return sorted(Mamba(8, **options).state_dict())

    assert keys() == sorted(base)
    assert keys(bimamba_type="v1") == sorted([*base, "A_b_log"])
    assert keys(bimamba_type="v2") == sorted([*base, *(name.format("b") for name in second)])
    assert keys(bimamba_type="v3") == sorted([*base, *(name.format(way) for name in second for way in "bs")])
    assert keys(bias=True, conv_bias=False, init_layer_scale=1.0) == sorted(
        [*(name for name in base if name != "conv1d.bias"), "in_proj.bias", "out_proj.bias", "gamma"]
    )


def test_initial_values_are_distributed_as_in_the_original():
    block = Mamba(64, bimamba_type="v2")
    steps = torch.nn.functional.softplus(block.dt_proj.bias)
    assert 0.001 <= steps.min() < 0.002
    assert 0.05 < steps.max() <= 0.1
    bound = block.dt_rank**-0.5
    assert 0.9 * bound < block.dt_proj.weight.abs().max() <= bound
    assert torch.equal(block.A_log, torch.arange(1, 17).float().log().repeat(128, 1))
    assert torch.equal(block.D_b, torch.ones(128))
    assert block.dt_proj_b.bias.abs().max() <= 1 / math.sqrt(block.dt_rank)  # torch's own, as in the original
    assert block.A_b_log._no_weight_decay
    assert block.dt_proj.bias._no_reinit
    constant = Mamba(64, dt_init="constant", dt_scale=2.0)
    assert torch.equal(constant.dt_proj.weight, torch.full((128, 4), 1.0))


def test_steps_continue_a_sequence():
    block = Mamba(6, d_state=3, layer_idx=0)
    hidden = torch.randn(2, 9, 6)
    whole = block(hidden)
    state = InferenceParams(max_seqlen=9, max_batch_size=2)
    with torch.no_grad():
        parts = [block(hidden[:, :2], inference_params=state)]  # shorter than the convolution
        for position in range(2, 9):
            state.seqlen_offset = position
            parts.append(block(hidden[:, position : position + 1], inference_params=state))
    close([torch.cat(parts, 1)], [whole], 1e-5)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Mamba(8, bimamba_type="v4"), "bimamba_type is 'v4'; it must be one of none, v1, v2, v3"),
        (lambda: Mamba(8, bimamba_type="v3", nslices=5)(torch.rand(1, 12, 8)), "nslices is 5; it must divide the 12"),
        (lambda: Mamba(8, dt_init="zero"), "dt_init is 'zero'"),
        (lambda: Mamba(8)(torch.rand(1, 3, 8), InferenceParams(3, 1)), "inference_params needs a layer_idx"),
        (
            lambda: Mamba(8, bimamba_type="v2", layer_idx=0)(torch.rand(1, 3, 8), InferenceParams(3, 1)),
            "a block of bimamba_type 'v2' sees later positions",
        ),
    ],
)
def test_what_the_originals_compute_wrongly_or_crash_on_is_said(act, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        act()


def inner_inputs(complex_A):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return (0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    width = 6 if complex_A else 3
    A = -torch.exp(normal(4, 3).detach())
    A = torch.complex(A, normal(4, 3).detach()) if complex_A else A
    return {
        "xz": normal(2, 8, 5),
        "conv1d_weight": normal(4, 1, 3),
        "conv1d_bias": normal(4),
        "x_proj_weight": normal(2 + 2 * width, 4),
        "delta_proj_weight": normal(4, 2),
        "out_proj_weight": normal(7, 4),
        "out_proj_bias": normal(7),
        "A": A.requires_grad_(),
        "D": normal(4),
        "delta_bias": normal(4),
        "B_proj_bias": normal(width),
        "C_proj_bias": normal(width),
    }


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("complex_A", [False, True])
def test_inner_functions_are_the_composition_of_loops(both_ways, complex_A):
    g = inner_inputs(complex_A)
    A_b = (1.5 * g["A"].detach()).requires_grad_()
    x, z = g["xz"].chunk(2, 1)
    x = convolution_loop(x, g["conv1d_weight"][:, 0], g["conv1d_bias"], activation="silu")
    projected = linear(x.transpose(1, 2), g["x_proj_weight"])
    delta = linear(projected[..., :2], g["delta_proj_weight"]).transpose(1, 2)
    B, C = projected[..., 2:].chunk(2, -1)
    B, C = B + g["B_proj_bias"], C + g["C_proj_bias"]
    if complex_A:
        B, C = (torch.complex(value[..., 0::2], value[..., 1::2]) for value in (B, C))
    B, C = (value.transpose(1, 2) for value in (B, C))

    def interleaved(value):
        return torch.view_as_real(value).flatten(-2) if complex_A else value

    y = scan_loop(x, delta, g["A"], *map(interleaved, (B, C)), g["D"], z, g["delta_bias"], True)[0]
    if both_ways:
        turned = [value.flip(-1) for value in (x, delta, B, C, z)]
        args = (turned[0], turned[1], A_b, *map(interleaved, turned[2:4]), g["D"], turned[4], g["delta_bias"], True)
        y = y + scan_loop(*args)[0].flip(-1)
    wanted = linear(y.transpose(1, 2), g["out_proj_weight"], g["out_proj_bias"])
    leaves = [*g.values(), *([A_b] if both_ways else [])]
    for function in (bimamba_inner_fn, bimamba_inner_ref) if both_ways else (mamba_inner_fn, mamba_inner_ref):
        found = function(**g, **({"A_b": A_b} if both_ways else {}))
        results = [[y, *gradients_of(y, leaves)] for y in (found, wanted)]
        close(*results, 1e-11)


def test_norms_of_projections_are_applied():
    g = inner_inputs(False)
    for name in ("B_proj_bias", "C_proj_bias"):
        del g[name]
    weights = {"b_rms_weight": torch.rand(3).double(), "c_rms_weight": torch.rand(3).double()}
    weights["dt_rms_weight"] = torch.rand(4).double()
    x, z = g["xz"].chunk(2, 1)
    x = convolution_loop(x, g["conv1d_weight"][:, 0], g["conv1d_bias"], activation="silu")
    projected = linear(x.transpose(1, 2), g["x_proj_weight"])
    delta = linear(projected[..., :2], g["delta_proj_weight"])

    def normed(value, weight):
        return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    B, C = (
        normed(value, weights[f"{n}_rms_weight"])
        for n, value in zip("bc", projected[..., 2:].chunk(2, -1), strict=True)
    )
    delta = normed(delta, weights["dt_rms_weight"])
    delta, B, C = (value.transpose(1, 2) for value in (delta, B, C))
    y = scan_loop(x, delta, g["A"], B, C, g["D"], z, g["delta_bias"], True)[0].transpose(1, 2)
    close([mamba_inner_fn(**g, **weights)], [linear(y, g["out_proj_weight"], g["out_proj_bias"])], 1e-11)
