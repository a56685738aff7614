"""mamba_ssm's Mamba-3 block in its form with one input and output per head (SISO)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from medmamba.compat.gated_norms import RMSNormGated
from medmamba.compat.mamba import initial_steps
from medmamba.compat.usage import used
from medmamba.kernels import mamba3_scan


def heavy_tail_activation(x: Tensor) -> Tensor:
    """1 + x for positive x, 1 / (1 - x) for negative x."""
    return x.clamp_min(0) + 1 / (1 - x.clamp_max(0))


class Mamba3(nn.Module):
    """A Mamba-3 block, (batch, L, d_model) to the same; `chunk_size` and `dropout` have no influence."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        expand: float = 2,
        headdim: int = 64,
        ngroups: int = 1,
        rope_fraction: float = 0.5,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        A_floor: float = 1e-4,
        is_outproj_norm: bool = False,
        is_mimo: bool = False,
        mimo_rank: int = 4,
        fuse_pregate_headwise_norm: bool = True,
        chunk_size: int = 64,
        dropout: float = 0.0,
        layer_idx: int | None = None,
        n_layer: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if is_mimo:
            raise NotImplementedError("is_mimo: medmamba.compat has Mamba3 with one input per head only.")
        if rope_fraction not in (0.5, 1.0):
            raise ValueError(f"rope_fraction is {rope_fraction}; it must be 0.5 or 1.0.")
        self.d_model, self.d_state, self.expand, self.headdim = d_model, d_state, expand, headdim
        self.d_inner = int(expand * d_model)
        self.nheads, self.num_bc_heads = self.d_inner // headdim, ngroups
        if self.d_inner % headdim or self.nheads % ngroups:
            raise ValueError(f"headdim = {headdim} must divide {self.d_inner} channels, and ngroups the heads.")
        self.num_rope_angles = int(d_state * rope_fraction) // 2
        if self.num_rope_angles < 1:
            raise ValueError(f"d_state = {d_state} is too small to turn half of it.")
        self.A_floor, self.is_outproj_norm, self.is_mimo, self.mimo_rank = A_floor, is_outproj_norm, False, 1
        self.chunk_size, self.layer_idx = chunk_size, layer_idx
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.parts = [self.d_inner, self.d_inner, *[ngroups * d_state] * 2, *[self.nheads] * 3, self.num_rope_angles]
        self.in_proj = nn.Linear(d_model, sum(self.parts), bias=False, **made)
        self.dt_bias = nn.Parameter(
            initial_steps(self.nheads, dt_min, dt_max, dt_init_floor, device=device, dtype=torch.float32)
        )
        self.B_bias = nn.Parameter(torch.ones(self.nheads, 1, d_state, device=device))
        self.C_bias = nn.Parameter(torch.ones(self.nheads, 1, d_state, device=device))
        self.B_norm = RMSNormGated(d_state, 1e-5, **made)
        self.C_norm = RMSNormGated(d_state, 1e-5, **made)
        self.D = nn.Parameter(torch.ones(self.nheads, device=device))
        for parameter in (self.dt_bias, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        if is_outproj_norm:
            self.norm = RMSNormGated(self.d_inner, 1e-5, headdim, True, **made)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False, **made)

    def forward(
        self,
        u: Tensor,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: object = None,
    ) -> Tensor:
        """The block's output. Raises NotImplementedError for samples in one row and for steps."""
        if any(value is not None for value in (seq_idx, cu_seqlens, inference_params)):
            raise NotImplementedError(
                "medmamba.compat's Mamba3 takes neither seq_idx, cu_seqlens nor inference_params: give each sample a "
                "batch entry of its own."
            )
        z, x, B, C, dt, A, mix, angle = self.in_proj(u).split(self.parts, -1)
        kind = torch.float64 if u.dtype == torch.float64 else torch.float32
        dt = softplus(dt.to(kind) + self.dt_bias.to(kind))  # (batch, L, heads)
        decay = dt * -heavy_tail_activation(A.to(kind)).clamp(min=self.A_floor)
        turn = torch.pi * torch.tanh(angle.to(kind)).unsqueeze(2) * dt.unsqueeze(-1)

        def per_head(value: Tensor, norm: RMSNormGated, bias: Tensor) -> Tensor:
            """B or C, (batch, L, groups n), as (batch, L, heads, 1, n)."""
            normed = norm(value.unflatten(-1, (self.num_bc_heads, self.d_state)))
            each = normed.repeat_interleave(self.nheads // self.num_bc_heads, 2).unsqueeze(3)
            return each.to(kind) + bias.to(kind)

        used("Mamba3", f"{'Triton' if u.is_cuda else 'torch operations'} on {u.device.type}")
        y = mamba3_scan(
            x.unflatten(-1, (self.nheads, 1, self.headdim)),
            per_head(B, self.B_norm, self.B_bias),
            per_head(C, self.C_norm, self.C_bias),
            dt,
            decay,
            torch.sigmoid(mix),
            turn,
            self.D,
        ).flatten(2)
        y = self.norm(y, z.to(y.dtype)) if self.is_outproj_norm else y * silu(z.to(y.dtype))
        return self.out_proj(y.to(x.dtype))
