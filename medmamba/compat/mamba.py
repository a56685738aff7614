"""mamba_ssm's Mamba-1 block, with the directions of Vim's fork (v1, v2) and of SegMamba's (v3)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from medmamba.compat.causal_convolution import causal_conv1d_fn, causal_conv1d_update
from medmamba.compat.generation import InferenceParams
from medmamba.compat.selective_scan import (
    bimamba_inner_fn,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    selective_scan_fn,
)
from medmamba.compat.state_update import selective_state_update

FURTHER_DIRECTIONS = {"none": "", "v1": "", "v2": "b", "v3": "bs"}
"""``bimamba_type`` -> suffixes of the parameters of each direction after the first; v1 has only ``A_b_log``."""


def initial_steps(
    count: int, dt_min: float, dt_max: float, dt_init_floor: float, device: Any = None, dtype: Any = None
) -> Tensor:
    """Biases whose softplus is log-uniform between `dt_min` and `dt_max`, at least `dt_init_floor`."""
    uniform = torch.rand(count, device=device, dtype=dtype)
    steps = torch.exp(uniform * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)).clamp(min=dt_init_floor)
    return steps + torch.log(-torch.expm1(-steps))


class Mamba(nn.Module):
    """A Mamba-1 block, (batch, L, d_model) to the same.

    ``bimamba_type``: "none" one direction; "v1" a second scan from the end on the same projections; "v2" a second
    direction with parameters of its own; "v3" a third one through `nslices` slices in turn. The directions run whether
    ``use_fast_path`` is set or not; Vim's and SegMamba's blocks silently drop them without it.
    """

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        nslices: int | None = 5,
    ) -> None:
        super().__init__()
        if bimamba_type not in FURTHER_DIRECTIONS:
            raise ValueError(f"bimamba_type is {bimamba_type!r}; it must be one of {', '.join(FURTHER_DIRECTIONS)}.")
        if dt_init not in ("random", "constant"):
            raise NotImplementedError(f"dt_init is {dt_init!r}; it must be 'random' or 'constant'.")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = dt_rank if isinstance(dt_rank, int) else math.ceil(d_model / 16)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.if_divide_out, self.nslices = bimamba_type, if_divide_out, nslices
        self.init_layer_scale = init_layer_scale
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model))
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **made)
        self._add_direction("", conv_bias, made)
        spread = self.dt_rank**-0.5 * dt_scale
        if dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, spread)
        else:
            nn.init.uniform_(self.dt_proj.weight, -spread, spread)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_steps(self.d_inner, dt_min, dt_max, dt_init_floor, **made))
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]
        self._add_states("A_log", "D", device)
        self.activation, self.act = "silu", nn.SiLU()
        if bimamba_type == "v1":
            self._add_states("A_b_log", None, device)
        for suffix in FURTHER_DIRECTIONS[bimamba_type]:
            self._add_states(f"A_{suffix}_log", None, device)
            self._add_direction(f"_{suffix}", conv_bias, made)
            self._add_states(None, f"D_{suffix}", device)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)

    def _add_direction(self, suffix: str, conv_bias: bool, made: dict[str, Any]) -> None:
        """Convolution and projections of one direction, with torch's own initial values."""
        width, kernel = self.d_inner, self.d_conv
        conv = nn.Conv1d(width, width, kernel, groups=width, padding=kernel - 1, bias=conv_bias, **made)
        self.add_module(f"conv1d{suffix}", conv)
        self.add_module(f"x_proj{suffix}", nn.Linear(width, self.dt_rank + 2 * self.d_state, bias=False, **made))
        self.add_module(f"dt_proj{suffix}", nn.Linear(self.dt_rank, width, bias=True, **made))

    def _add_states(self, decay: str | None, skip: str | None, device: Any) -> None:
        """log A = log(1..N) in every channel, D = 1; both in float32 and without weight decay."""
        for name, value in (
            (
                decay,
                torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device).log().repeat(self.d_inner, 1),
            ),
            (skip, torch.ones(self.d_inner, device=device)),
        ):
            if name is not None:
                parameter = nn.Parameter(value)
                parameter._no_weight_decay = True  # type: ignore[attr-defined]
                self.register_parameter(name, parameter)

    def _inner(self, suffix: str = "") -> tuple[dict[str, Any], Tensor]:
        """The arguments of an inner function for one direction, and its A."""

        def own(name: str) -> Any:
            return getattr(self, f"{name}{suffix}")

        log = self.A_log if not suffix else getattr(self, f"A{suffix}_log")
        arguments = {
            "conv1d_weight": own("conv1d").weight,
            "conv1d_bias": own("conv1d").bias,
            "x_proj_weight": own("x_proj").weight,
            "delta_proj_weight": own("dt_proj").weight,
            "D": _wide(own("D")),
            "delta_bias": _wide(own("dt_proj").bias),
        }
        return arguments, -torch.exp(_wide(log))

    def forward(self, hidden_states: Tensor, inference_params: InferenceParams | None = None) -> Tensor:
        """The block's output; with `inference_params` the states are kept there and used at the next step."""
        if inference_params is not None:
            return self._with_states(hidden_states, inference_params)
        xz = self.in_proj(hidden_states).transpose(1, 2)
        arguments, A = self._inner()
        projection: Any = {"out_proj_weight": self.out_proj.weight, "out_proj_bias": self.out_proj.bias}
        if self.bimamba_type == "none":
            out = mamba_inner_fn(xz, A=A, **arguments, **projection)
        elif self.bimamba_type == "v1":
            back = -torch.exp(_wide(self.A_b_log))
            out = bimamba_inner_fn(xz, A=A, A_b=back, **arguments, **projection)
        else:
            out = self._directions(xz, arguments, A)
        return out if self.init_layer_scale is None else out * self.gamma

    def _directions(self, xz: Tensor, arguments: Any, A: Tensor) -> Tensor:
        y = mamba_inner_fn_no_out_proj(xz, A=A, **arguments)
        arguments, A = self._inner("_b")
        y = y + mamba_inner_fn_no_out_proj(xz.flip(-1), A=A, **arguments).flip(-1)
        if self.bimamba_type == "v3":
            length, slices = xz.shape[-1], self.nslices
            if slices is None or slices < 1 or length % slices:
                raise ValueError(f"nslices is {slices}; it must divide the {length} positions.")
            arguments, A = self._inner("_s")
            in_turn = xz.unflatten(-1, (slices, -1)).transpose(-1, -2).flatten(-2)
            across = mamba_inner_fn_no_out_proj(in_turn, A=A, **arguments)
            y = y + across.unflatten(-1, (-1, slices)).transpose(-1, -2).flatten(-2)
        y = y.transpose(1, 2)
        return linear(y / 2 if self.if_divide_out else y, self.out_proj.weight, self.out_proj.bias)

    def _with_states(self, hidden_states: Tensor, inference_params: InferenceParams) -> Tensor:
        conv_state, ssm_state = self._get_states_from_cache(inference_params, hidden_states.shape[0])
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, conv_state, ssm_state)[0]
        arguments, A = self._inner()
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        with torch.no_grad():
            conv_state.copy_(pad(x, (self.d_conv - x.shape[-1], 0)))
        x = causal_conv1d_fn(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        projected = self.x_proj(x.transpose(1, 2))
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = linear(dt, self.dt_proj.weight)
        dt, B, C = (value.transpose(1, 2) for value in (dt, B, C))
        y, last = selective_scan_fn(x, dt, A, B, C, arguments["D"], z, arguments["delta_bias"], True, True)
        with torch.no_grad():
            ssm_state.copy_(last)
        out = self.out_proj(y.transpose(1, 2))
        return out if self.init_layer_scale is None else out * self.gamma

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output of one further position (batch, 1, d_model); both states are updated in place."""
        self._refuse_steps()
        if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
            raise ValueError(f"a step takes (batch, 1, d_model), it was given {tuple(hidden_states.shape)}.")
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)
        x = causal_conv1d_update(x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, self.activation)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = linear(dt, self.dt_proj.weight)
        A = -torch.exp(_wide(self.A_log))
        y = selective_state_update(ssm_state, x, dt, A, B, C, self.D, z, self.dt_proj.bias, True)
        out = self.out_proj(y).unsqueeze(1)
        return (out if self.init_layer_scale is None else out * self.gamma), conv_state, ssm_state

    def _refuse_steps(self) -> None:
        if self.bimamba_type != "none":
            raise NotImplementedError(
                f"a block of bimamba_type {self.bimamba_type!r} sees later positions and has no single steps: "
                "call it without inference_params."
            )

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states: (batch, d_inner, d_conv) of the convolution, (batch, d_inner, d_state) of the scan."""
        self._refuse_steps()
        conv, scan = self.conv1d.weight, self.dt_proj.weight
        return (
            conv.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype, requires_grad=False),
            scan.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype, requires_grad=False),
        )

    def _get_states_from_cache(
        self, inference_params: InferenceParams, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return states_of(self, inference_params, batch_size, initialize_states)


def states_of(layer: Any, inference_params: InferenceParams, batch: int, initialise: bool) -> tuple[Tensor, Tensor]:
    """A layer's states from the record of an inference, made at the first call."""
    if layer.layer_idx is None:
        raise ValueError("inference_params needs a layer_idx: give the block one when it is made.")
    kept = inference_params.key_value_memory_dict
    if layer.layer_idx not in kept:
        kept[layer.layer_idx] = layer.allocate_inference_cache(batch, inference_params.max_seqlen)
    elif initialise:
        for state in kept[layer.layer_idx]:
            state.zero_()
    states = kept[layer.layer_idx]
    if states[0].shape[0] != batch:
        raise ValueError(f"the states of layer {layer.layer_idx} are for {states[0].shape[0]} entries, not {batch}.")
    return states


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
