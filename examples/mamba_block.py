"""A published Mamba block on a CPU, by changing one import.

    python examples/mamba_block.py                                      # a block of 64 channels with random weights
    python examples/mamba_block.py WEIGHTS.safetensors layers.0.mixer   # the block of that name from a checkpoint

The block is Gu and Dao's (arXiv:2312.00752, figure 3) with the parameter names of published checkpoints. Code that was
written for mamba_ssm runs the same way: only the import of `selective_scan_fn` changes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

# from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from medmamba.kernels import selective_scan_fn, selective_scan_ref


class MambaBlock(nn.Module):
    """(batch, length, width) to the same: projection, causal convolution, selective scan with gate, projection."""

    def __init__(self, width: int, states: int = 16, kernel: int = 4, expand: int = 2, rank: int | None = None) -> None:
        super().__init__()
        inner, rank = expand * width, rank or math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor]) -> MambaBlock:
        """The block that fits a state dict of it."""
        inner, states = weights["A_log"].shape
        width, rank = weights["out_proj.weight"].shape[0], weights["dt_proj.weight"].shape[1]
        block = cls(width, states, weights["conv1d.weight"].shape[-1], inner // width, rank)
        block.load_state_dict(weights)
        return block

    def forward(self, hidden: Tensor, scan=selective_scan_fn) -> Tensor:  # type: ignore[no-untyped-def]
        length, (inner, states) = hidden.shape[1], self.A_log.shape
        x, z = self.in_proj(hidden).transpose(1, 2).split(inner, 1)  # (batch, inner, length)
        x = F.silu(self.conv1d(x)[..., :length])
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([self.dt_proj.in_features, states, states], -1)
        delta = F.linear(dt, self.dt_proj.weight).transpose(1, 2)
        A = -torch.exp(self.A_log.float())
        y = scan(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), self.D.float(), z, self.dt_proj.bias.float(), True)
        return self.out_proj(y.transpose(1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", help="a .safetensors file of a Mamba network")
    parser.add_argument("name", nargs="?", default="", help="the block's name in it, such as layers.0.mixer")
    given = parser.parse_args()
    torch.manual_seed(0)
    if given.weights:
        start = f"{given.name}." if given.name else ""
        found = {name: value for name, value in load_file(given.weights).items() if name.startswith(start)}
        if f"{start}A_log" not in found:
            raise SystemExit(f"{given.weights}: no Mamba block {given.name!r}: there is no {start}A_log.")
        block = MambaBlock.of_weights({name.removeprefix(start): value for name, value in found.items()})
    else:
        block = MambaBlock(64)
    width = block.out_proj.out_features
    hidden = torch.randn(2, 200, width, requires_grad=True)
    fast, exact = block(hidden), block(hidden, selective_scan_ref)
    difference = ((fast - exact).abs().max() / exact.abs().max()).item()
    fast.square().mean().backward()
    parameters = sum(p.numel() for p in block.parameters())
    print(f"Mamba block, {width} channels, {block.A_log.shape[1]} states, {parameters} parameters")
    print(f"difference from the reference: {difference:.1e}; every parameter has a gradient: ", end="")
    print(all(p.grad is not None and bool(p.grad.any()) for p in block.parameters()))


if __name__ == "__main__":
    main()
