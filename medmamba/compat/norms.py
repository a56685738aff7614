"""mamba_ssm's layer and RMS norms that add a residual first (mamba_ssm.ops.triton.layer_norm)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from medmamba.compat.usage import torch_on, used
from medmamba.kernels.arguments import check_kinds


def root_mean_square_norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight + bias over the last axis, computed in float32, in the dtype of x."""
    return _norm(_wide(x), weight, bias, eps, rms=True).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    if not rms:
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)
    return x if bias is None else x + bias.to(x.dtype)


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """Norm of dropout(x * rowscale) + dropout(x1) + residual, with one or two sets of weights.

    All tensors are (..., width), `rowscale` is x without the last axis. Returns y in the dtype of x; with `weight1` a
    second one; with `prenorm` the sum too, in the dtype of `residual` (float32 with `residual_in_fp32` and none);
    with `return_dropout_mask` the masks of x and x1 (None without dropout).
    """
    named = {"x": x, "weight": weight, "bias": bias, "residual": residual, "x1": x1, "weight1": weight1}
    check_kinds(named | {"bias1": bias1, "rowscale": rowscale})
    for name, value in (("residual", residual), ("x1", x1)):
        if value is not None and value.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {tuple(x.shape)}; it is {tuple(value.shape)}.")
    for name, value in (("weight", weight), ("bias", bias), ("weight1", weight1), ("bias1", bias1)):
        if value is not None and tuple(value.shape) != (x.shape[-1],):
            raise ValueError(f"{name} must be {(x.shape[-1],)} to fit x {tuple(x.shape)}, it is {tuple(value.shape)}.")
    if x1 is not None and rowscale is not None:
        raise ValueError("rowscale cannot be combined with x1.")
    used("rms_norm_fn" if is_rms_norm else "layer_norm_fn", torch_on(x))
    with torch.autocast(x.device.type, enabled=False):
        total = _wide(x) if rowscale is None else _wide(x) * rowscale.unsqueeze(-1)
        total, mask = _dropped(total, dropout_p)
        mask1 = None
        if x1 is not None:
            other, mask1 = _dropped(_wide(x1), dropout_p)
            total = total + other
        if residual is not None:
            total = total + residual
        y = _norm(total, weight, bias, eps, is_rms_norm).to(x.dtype)
        kept = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
        outputs = [y]
        if weight1 is not None:
            outputs.append(_norm(total, weight1, bias1, eps, is_rms_norm).to(x.dtype))
    if prenorm:
        outputs.append(total.to(kept))
    every = [*outputs, mask, mask1] if return_dropout_mask else outputs
    return every[0] if len(every) == 1 else tuple(every)


def _dropped(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    if p == 0:
        return x, None
    scaled = dropout(torch.ones_like(x), p)
    return x * scaled, scaled != 0


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """`layer_norm_fn` that does not subtract the mean."""
    inputs = (x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32)
    return layer_norm_fn(*inputs, True, return_dropout_mask)


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    upcast: bool = False,
) -> Any:
    """`layer_norm_fn` with the arguments of the original's reference, always computed in float32 at least."""
    return layer_norm_fn(x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm)


def rms_norm_ref(*arguments: Any, upcast: bool = False, **options: Any) -> Any:
    """`rms_norm_fn` with the arguments of the original's reference."""
    return rms_norm_fn(*arguments, **options)


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """A norm followed by a linear layer; with `prenorm` the sum before the norm too."""
    found = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    y, *rest = found if prenorm else (found,)
    y = linear(y, linear_weight, linear_bias)
    return (y, *rest) if prenorm else y


class AddRMSNorm(nn.Module):
    """`rms_norm_fn` as a module with one parameter, ``weight``."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0 else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every weight to one."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Any:
        """`rms_norm_fn` of x + residual."""
        p = self.drop.p if self.drop is not None and self.training else 0.0
        options: dict[str, Any] = {"prenorm": prenorm, "residual_in_fp32": residual_in_fp32, "dropout_p": p}
        return rms_norm_fn(x, self.weight, None, residual, eps=self.eps, **options)
