"""The Mamba-3 block against its recurrence by loops in float64, gradients included."""

import math

import pytest
import torch
from plain_loops import close, gradients_of
from torch.nn.functional import silu, softplus

from medmamba.compat.mamba3 import Mamba3


def normed(value, weight, size):
    value = value.unflatten(-1, (-1, size))
    return (value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * weight


def block_loop(block, u):
    """The block as a recurrence over positions, with angles that add up."""
    heads, n, p, m = block.nheads, block.d_state, block.headdim, block.num_rope_angles
    z, x, B, C, dt, A, mix, angle = block.in_proj(u).split(block.parts, -1)
    dt = softplus(dt + block.dt_bias)
    A = -torch.where(A > 0, 1 + A, 1 / (1 - A)).clamp(min=block.A_floor)
    mix = mix.sigmoid()
    groups = block.num_bc_heads
    B, C = (
        torch.cat([normed(part, norm.weight, n).unsqueeze(2) for part in value.chunk(groups, -1)], 2).repeat_interleave(
            heads // groups, 2
        )
        + bias[:, 0]
        for value, norm, bias in ((B, block.B_norm, block.B_bias), (C, block.C_norm, block.C_bias))
    )
    x = x.unflatten(-1, (heads, p))
    total, state = 0, u.new_zeros(u.shape[0], heads, p, n)
    last = torch.zeros_like(state)
    outputs = []

    def turn(value):
        pairs = value[..., : 2 * m].unflatten(-1, (m, 2))
        number = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(total), total)
        return torch.cat([torch.view_as_real(number).flatten(-2), value[..., 2 * m :]], -1)

    for t in range(u.shape[1]):
        s = dt[:, t]
        total = total + math.pi * torch.tanh(angle[:, t]).unsqueeze(1) * s.unsqueeze(-1)
        new = x[:, t].unsqueeze(-1) * turn(B[:, t]).unsqueeze(-2)
        alpha, share, s = (value[..., None, None] for value in (torch.exp(s * A[:, t]), mix[:, t], s))
        state = alpha * state + alpha * (1 - share) * s * last + share * s * new
        last = new
        outputs.append((state * turn(C[:, t]).unsqueeze(-2)).sum(-1) + block.D[:, None] * x[:, t])
    y = torch.stack(outputs, 1).flatten(2)
    y = normed(y, block.norm.weight, p) * silu(z) if block.is_outproj_norm else y * silu(z)
    return block.out_proj(y)


@pytest.mark.parametrize(
    "options", [{}, {"ngroups": 2, "rope_fraction": 1.0}, {"is_outproj_norm": True, "d_state": 6}], ids=str
)
def test_the_block_is_its_recurrence(options):
    block = Mamba3(8, **{"d_state": 8, "headdim": 4, **options}).double()
    u = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    for parameter in (block.B_bias, block.C_bias, block.B_norm.weight):
        torch.nn.init.normal_(parameter)
    leaves = [u, *block.parameters()]
    found, wanted = block(u), block_loop(block, u)
    close([found, *gradients_of(found, leaves)], [wanted, *gradients_of(wanted, leaves)], 1e-10)
    single = block.float()(u.detach().float())
    close([single], [wanted], 2e-5)


def test_keys_and_shapes_are_those_of_the_original():
    block = Mamba3(128)
    shapes = {name: tuple(value.shape) for name, value in block.state_dict().items()}
    assert shapes == {
        "dt_bias": (4,),
        "B_bias": (4, 1, 128),
        "C_bias": (4, 1, 128),
        "D": (4,),
        "in_proj.weight": (2 * 256 + 2 * 128 + 3 * 4 + 32, 128),
        "B_norm.weight": (128,),
        "C_norm.weight": (128,),
        "out_proj.weight": (128, 256),
    }


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Mamba3(8, is_mimo=True), "is_mimo: medmamba.compat has Mamba3 with one input per head only"),
        (lambda: Mamba3(8, rope_fraction=0.3), "rope_fraction is 0.3"),
        (lambda: Mamba3(8, headdim=5), "headdim = 5 must divide 16 channels"),
        (lambda: Mamba3(8, headdim=4, d_state=2), "d_state = 2 is too small"),
        (
            lambda: Mamba3(8, headdim=4, d_state=4)(torch.rand(1, 3, 8), cu_seqlens=torch.tensor([0, 3])),
            "takes neither seq_idx, cu_seqlens nor inference_params",
        ),
    ],
)
def test_what_is_not_answered_is_said(act, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        act()
