"""causal_conv1d 1.6 (and 1.0, 1.1): depthwise convolution of sequences in which no position sees later ones."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad, silu

from medmamba.compat.usage import torch_on, used
from medmamba.kernels.arguments import check_kinds, check_shapes

ACTIVATIONS = (None, "silu", "swish")


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, **others: Tensor | None) -> None:
    if activation not in ACTIVATIONS:
        raise NotImplementedError(f"activation is {activation!r}; it must be None, 'silu' or 'swish'.")
    check_kinds({"x": x, "weight": weight, "bias": bias} | others)
    if x.dim() != 3 or weight.dim() != 2 or 0 in (x.shape[2], weight.shape[1]):
        raise ValueError(
            f"x must be (batch, D, L) and weight (D, width), without a 0; they are {tuple(x.shape)} "
            f"and {tuple(weight.shape)}."
        )
    sizes = {"D": x.shape[1], "width": weight.shape[1]}
    check_shapes({"weight": weight, "bias": bias}, {"weight": "(D, width)", "bias": "(D,)"}, sizes)


def _precision(*values: Tensor | None) -> torch.dtype:
    return torch.float64 if any(v is not None and v.dtype == torch.float64 for v in values) else torch.float32


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """Depthwise causal convolution, and silu if asked for.

    Arguments:
        x: (batch, D, L), of any strides; weight: (D, width), any width; bias: (D,).
        seq_idx: (batch, L), the sample of each position: a position sees its own sample only, negative ones give zero.
            A text is taken as the activation, which stood here before version 1.2.
        initial_states: (batch, D, width - 1), what stood before the first position.
        return_final_states: whether the last width - 1 inputs are returned too; `final_states_out` receives them.

    Returns the output in the dtype of x. float16 and bfloat16 are computed in float32.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    _check(x, weight, bias, activation, initial_states=initial_states)
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise ValueError("seq_idx cannot be combined with initial_states or return_final_states.")
    batch, channels, length = x.shape
    width = weight.shape[1]
    shapes = {"initial_states": "(batch, D, before)", "seq_idx": "(batch, L)"}
    sizes = {"batch": batch, "D": channels, "before": width - 1, "L": length}
    check_shapes({"initial_states": initial_states, "seq_idx": seq_idx}, shapes, sizes)
    used("causal_conv1d_fn", torch_on(x))
    kind = _precision(x, weight, bias, initial_states)
    weight, offset = weight.to(kind), None if bias is None else bias.to(kind)
    with torch.autocast(x.device.type, enabled=False):
        before = initial_states if initial_states is not None else x.new_zeros(batch, channels, width - 1)
        whole = torch.cat([before.to(kind), x.to(kind)], -1)
        if seq_idx is None:
            out = conv1d(whole, weight.unsqueeze(1), offset, groups=channels)
        else:
            out = _within_samples(whole, weight, offset, seq_idx)
        out = (out if activation is None else silu(out)).to(x.dtype)
        if seq_idx is not None:
            out = out.masked_fill((seq_idx < 0).unsqueeze(1), 0)
    if not return_final_states:
        return out
    final = whole[..., whole.shape[-1] - (width - 1) :].to(x.dtype)
    if final_states_out is not None:
        with torch.no_grad():
            final_states_out.copy_(final)
        return out, final_states_out
    return out, final


def _within_samples(whole: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor) -> Tensor:
    """The convolution tap by tap, without what belongs to other samples."""
    width, length = weight.shape[1], seq_idx.shape[1]
    samples = pad(seq_idx, (width - 1, 0), value=-1)
    out = torch.zeros_like(whole[..., :length])
    for tap in range(width):
        own = (samples[:, tap : tap + length] == seq_idx).unsqueeze(1)
        out = out + weight[:, tap, None] * whole[..., tap : tap + length] * own
    return out if bias is None else out + bias.unsqueeze(-1)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The convolution of the next positions, from a state that is updated in place.

    Arguments:
        x: (batch, D) or (batch, D, L).
        conv_state: (batch, D, length of at least width - 1), of any strides: the last inputs.
        cache_seqlens: (batch,), how many positions came before: the state is then a ring buffer.
        conv_state_indices: (batch,), the rows of a larger state that belong to the entries.

    Returns the output in the shape and dtype of x.
    """
    single = x.dim() == 2
    x = x.unsqueeze(-1) if single else x
    _check(x, weight, bias, activation, conv_state=conv_state)
    batch, channels, length = x.shape
    width, kept = weight.shape[1], conv_state.shape[-1]
    rows = conv_state if conv_state_indices is None else conv_state[conv_state_indices]
    if tuple(rows.shape) != (batch, channels, kept) or kept < width - 1:
        raise ValueError(
            f"conv_state must be (batch, D, at least {width - 1}) = ({batch}, {channels}, ...), "
            f"it is {tuple(conv_state.shape)}."
        )
    if cache_seqlens is not None and length > kept:
        raise ValueError(f"x has {length} positions, more than the ring buffer conv_state has places ({kept}).")
    used("causal_conv1d_update", torch_on(x))
    kind = _precision(x, weight, bias)
    old = rows.detach().to(kind)
    if cache_seqlens is not None:
        places = torch.arange(-(width - 1), 0, device=x.device) + cache_seqlens.long().unsqueeze(1)
        old = old.gather(2, (places % kept).unsqueeze(1).expand(-1, channels, -1))
    whole = torch.cat([old, x.to(kind)], -1)
    with torch.no_grad():
        if cache_seqlens is None:
            new = whole[..., whole.shape[-1] - kept :].to(conv_state.dtype)
        else:
            places = torch.arange(length, device=x.device) + cache_seqlens.long().unsqueeze(1)
            places = (places % kept).unsqueeze(1).expand(-1, channels, -1)
            new = rows.scatter(2, places, x.to(conv_state.dtype))
        if conv_state_indices is None:
            conv_state.copy_(new)
        else:
            conv_state[conv_state_indices] = new
    with torch.autocast(x.device.type, enabled=False):
        recent = whole[..., whole.shape[-1] - (length + width - 1) :]
        out = conv1d(recent, weight.to(kind).unsqueeze(1), None if bias is None else bias.to(kind), groups=channels)
    out = (out if activation is None else silu(out)).to(x.dtype)
    return out.squeeze(-1) if single else out


causal_conv1d_ref = causal_conv1d_fn
causal_conv1d_update_ref = causal_conv1d_update


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last `state_len` inputs of each sample of x (tokens, D), zeros before its start: (samples, D, state_len)."""
    bounds = cu_seqlens.tolist()
    states = []
    for start, end in itertools.pairwise(bounds):
        own = x[max(start, end - state_len) : end].T
        states.append(pad(own, (state_len - own.shape[1], 0)))
    return torch.stack(states)
