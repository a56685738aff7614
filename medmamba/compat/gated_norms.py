"""mamba_ssm's norms with a gate and groups (mamba_ssm.ops.triton.layernorm_gated), which Mamba-2 ends with."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from medmamba.compat.usage import torch_on, used
from medmamba.kernels.arguments import check_kinds


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """norm(x) * silu(z), or norm(x * silu(z)), over groups of the last axis; in the dtype of x."""
    check_kinds({"x": x, "weight": weight, "bias": bias, "z": z})
    width = x.shape[-1]
    if z is not None and z.shape != x.shape:
        raise ValueError(f"z must have the shape of x, {tuple(x.shape)}; it is {tuple(z.shape)}.")
    if tuple(weight.shape) != (width,) or width % (group_size or width):
        raise ValueError(
            f"weight must be ({width},) and group_size divide {width}; they are {tuple(weight.shape)} and {group_size}."
        )
    used("rmsnorm_fn" if is_rms_norm else "layernorm_fn", torch_on(x))
    with torch.autocast(x.device.type, enabled=False):
        wide = x if x.dtype == torch.float64 else x.float()
        gate = None if z is None else silu(z.to(wide.dtype))
        if gate is not None and not norm_before_gate:
            wide = wide * gate
        grouped = wide.unflatten(-1, (-1, group_size or width))
        if not is_rms_norm:
            grouped = grouped - grouped.mean(-1, keepdim=True)
        grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
        y = grouped.flatten(-2) * weight.to(wide.dtype)
        y = y if bias is None else y + bias.to(wide.dtype)
        if gate is not None and norm_before_gate:
            y = y * gate
    return y.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """`layernorm_fn` that does not subtract the mean."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """`rmsnorm_fn` with the arguments of the original's reference."""
    return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


class LayerNormGated(nn.Module):
    """`layernorm_fn` as a module."""

    is_rms_norm = False
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        bias = None if self.is_rms_norm else nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", bias)
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights to one and the biases to zero."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """`layernorm_fn` of x, gated by z."""
        inputs = (x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)
        return layernorm_fn(*inputs, self.is_rms_norm)


class RMSNormGated(LayerNormGated):
    """`rmsnorm_fn` as a module."""

    is_rms_norm = True
