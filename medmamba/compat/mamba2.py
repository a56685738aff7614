"""mamba_ssm's Mamba-2 blocks: Mamba2 with steps, and Mamba2Simple with learned initial states."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu

from medmamba.compat.causal_convolution import causal_conv1d_fn, causal_conv1d_update
from medmamba.compat.chunk_scan import NO_LIMIT, mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from medmamba.compat.gated_norms import RMSNormGated
from medmamba.compat.generation import InferenceParams
from medmamba.compat.mamba import initial_steps, states_of
from medmamba.compat.state_update import selective_state_update


class _Mamba2Parameters(nn.Module):
    """What both blocks have: the projection to [z, x, B, C, dt], the convolution, the step sizes, A and D."""

    def _make(
        self,
        projected: int,
        conv_width: int,
        d_conv: int,
        conv_init: float | None,
        heads: int,
        A_init_range: tuple[float, float],
        steps: tuple[float, float, float],
        bias: bool,
        conv_bias: bool,
        skip_width: int,
        initial_states: tuple[int, ...] | None,
        made: dict[str, Any],
    ) -> None:
        device, dtype = made["device"], made["dtype"]
        low, high = A_init_range
        if not 0 < low <= high:
            raise ValueError(f"A_init_range must be (low, high) with 0 < low <= high, it is {A_init_range}.")
        self.in_proj = nn.Linear(self.d_model, projected, bias=bias, **made)
        conv: dict[str, Any] = {"groups": conv_width, "padding": d_conv - 1, "bias": conv_bias}
        self.conv1d = nn.Conv1d(conv_width, conv_width, d_conv, **conv, **made)
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        if initial_states is not None:
            self.init_states = nn.Parameter(torch.zeros(initial_states, **made))
            self.init_states._no_weight_decay = True  # type: ignore[attr-defined]
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(initial_steps(heads, *steps, device=device, dtype=dtype))
        A = torch.empty(heads, dtype=torch.float32, device=device).uniform_(low, high)
        self.A_log = nn.Parameter(torch.log(A).to(dtype=dtype))
        self.D = nn.Parameter(torch.ones(skip_width, device=device))
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    d_model: int

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log if self.A_log.dtype == torch.float64 else self.A_log.float())


def _whole(name: str, value: int, of: str, part: int) -> int:
    if part < 1 or value % part:
        raise ValueError(f"{name} = {value} must be a multiple of {of} = {part}.")
    return value // part


class Mamba2(_Mamba2Parameters):
    """A Mamba-2 block, (batch, L, d_model) to the same; ``use_mem_eff_path`` does not change what it computes."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = NO_LIMIT,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: object = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if process_group is not None:
            raise NotImplementedError("process_group: medmamba.compat does not divide a block over processes.")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = expand * d_model
        self.headdim, self.d_ssm, self.ngroups = headdim, self.d_inner if d_ssm is None else d_ssm, ngroups
        self.nheads = _whole("d_ssm", self.d_ssm, "headdim", headdim)
        _whole("the number of heads", self.nheads, "ngroups", ngroups)
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit, self.activation, self.chunk_size = (dt_limit[0], dt_limit[1]), "silu", chunk_size
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        conv_width = self.d_ssm + 2 * ngroups * d_state
        self._make(
            2 * self.d_inner + 2 * ngroups * d_state + self.nheads,
            conv_width,
            d_conv,
            conv_init,
            self.nheads,
            A_init_range,
            (dt_min, dt_max, dt_init_floor),
            bias,
            conv_bias,
            self.d_ssm if D_has_hdim else self.nheads,
            None,
            made,
        )
        if rmsnorm:
            self.norm = RMSNormGated(self.d_ssm, 1e-5, self.d_ssm // ngroups, norm_before_gate, **made)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)

    def _skip(self) -> Tensor:
        return self.D.unflatten(0, (-1, self.headdim)) if self.D_has_hdim else self.D

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: InferenceParams | None = None,
    ) -> Tensor:
        """The block's output; with `seqlen`, u is (batch * seqlen, d_model)."""
        whole = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if inference_params is not None:
            out = self._with_states(whole, seq_idx, cu_seqlens, inference_params)
        else:
            out = mamba_split_conv1d_scan_combined(
                self.in_proj(whole),
                self.conv1d.weight.squeeze(1),
                self.conv1d.bias,
                self.dt_bias,
                self._A(),
                self._skip(),
                self.chunk_size,
                seq_idx=seq_idx,
                dt_limit=self.dt_limit,
                activation=self.activation,
                rmsnorm_weight=self.norm.weight if self.rmsnorm else None,
                rmsnorm_eps=self.norm.eps if self.rmsnorm else 1e-6,
                outproj_weight=self.out_proj.weight,
                outproj_bias=self.out_proj.bias,
                headdim=None if self.D_has_hdim else self.headdim,
                ngroups=self.ngroups,
                norm_before_gate=self.norm_before_gate,
            )
        return out if seqlen is None else out.flatten(0, 1)

    def _parts(self, zxbcdt: Tensor) -> tuple[Tensor, ...]:
        conv_width = self.d_ssm + 2 * self.ngroups * self.d_state
        beside = 2 * (self.d_inner - self.d_ssm)
        return zxbcdt.split([beside, self.d_ssm, conv_width, self.nheads], -1)

    def _finish(self, y: Tensor, z: Tensor, beside: Tensor) -> Tensor:
        y = self.norm(y, z) if self.rmsnorm else y
        if beside.shape[-1]:
            gate, value = beside.chunk(2, -1)
            y = torch.cat([silu(gate) * value, y], -1)
        return linear(y, self.out_proj.weight, self.out_proj.bias)

    def _heads(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (self.nheads, self.headdim))

    def _with_states(
        self, u: Tensor, seq_idx: Tensor | None, cu_seqlens: Tensor | None, inference_params: InferenceParams
    ) -> Tensor:
        if cu_seqlens is not None:
            raise NotImplementedError("cu_seqlens with inference_params: give each sample a batch entry of its own.")
        conv_state, ssm_state = states_of(self, inference_params, u.shape[0], False)
        if inference_params.seqlen_offset > 0:
            return self.step(u, conv_state, ssm_state)[0]
        beside, z, xBC, dt = self._parts(self.in_proj(u))
        xBC = xBC.transpose(1, 2)
        with torch.no_grad():
            conv_state.copy_(pad(xBC, (self.d_conv - xBC.shape[-1], 0)))
        xBC = causal_conv1d_fn(xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, seq_idx, activation="silu")
        x, B, C = xBC.transpose(1, 2).split([self.d_ssm, *[self.ngroups * self.d_state] * 2], -1)
        B, C = (value.unflatten(-1, (self.ngroups, -1)) for value in (B, C))
        y, last = mamba_chunk_scan_combined(
            self._heads(x),
            dt,
            self._A(),
            B,
            C,
            self.chunk_size,
            D=self._skip(),
            z=None if self.rmsnorm else self._heads(z),
            dt_bias=self.dt_bias,
            seq_idx=seq_idx,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            return_final_states=True,
        )
        with torch.no_grad():
            ssm_state.copy_(last)
        return self._finish(y.flatten(-2), z, beside)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output of one further position (batch, 1, d_model); both states are updated in place."""
        if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
            raise ValueError(f"a step takes (batch, 1, d_model), it was given {tuple(hidden_states.shape)}.")
        if self.dt_limit != NO_LIMIT:
            raise NotImplementedError("dt_limit has no single steps: call the block without inference_params.")
        beside, z, xBC, dt = self._parts(self.in_proj(hidden_states.squeeze(1)))
        xBC = causal_conv1d_update(xBC, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
        x, B, C = xBC.split([self.d_ssm, *[self.ngroups * self.d_state] * 2], -1)
        per_head = (self.nheads, self.headdim)
        y = selective_state_update(
            ssm_state,
            self._heads(x),
            dt.unsqueeze(-1).expand(-1, *per_head),
            self._A()[:, None, None].expand(*per_head, self.d_state),
            B.unflatten(-1, (self.ngroups, -1)),
            C.unflatten(-1, (self.ngroups, -1)),
            self._skip() if self.D_has_hdim else self.D.unsqueeze(-1).expand(per_head),
            None if self.rmsnorm else self._heads(z),
            self.dt_bias.unsqueeze(-1).expand(per_head),
            True,
        )
        return self._finish(y.flatten(-2), z, beside).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states: (batch, channels, d_conv) of the convolution, (batch, heads, headdim, d_state) of the scan."""
        conv, scan = self.conv1d.weight, self.in_proj.weight
        return (
            conv.new_zeros(batch_size, conv.shape[0], self.d_conv, dtype=dtype),
            scan.new_zeros(batch_size, self.nheads, self.headdim, self.d_state, dtype=dtype),
        )

    def _get_states_from_cache(
        self, inference_params: InferenceParams, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        return states_of(self, inference_params, batch_size, initialize_states)


class Mamba2Simple(_Mamba2Parameters):
    """A Mamba-2 block without steps; its initial states can be learned."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = NO_LIMIT,
        learnable_init_states: bool = False,
        activation: str = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner, self.headdim, self.ngroups = expand * d_model, headdim, ngroups
        self.nheads = _whole("d_inner", self.d_inner, "headdim", headdim)
        _whole("the number of heads", self.nheads, "ngroups", ngroups)
        self.dt_limit, self.learnable_init_states, self.activation = (
            (dt_limit[0], dt_limit[1]),
            learnable_init_states,
            activation,
        )
        self.chunk_size, self.use_mem_eff_path, self.layer_idx = chunk_size, use_mem_eff_path, layer_idx
        self._make(
            2 * self.d_inner + 2 * ngroups * d_state + self.nheads,
            self.d_inner + 2 * ngroups * d_state,
            d_conv,
            conv_init,
            self.nheads,
            A_init_range,
            (dt_min, dt_max, dt_init_floor),
            bias,
            conv_bias,
            self.nheads,
            (self.nheads, headdim, d_state) if learnable_init_states else None,
            made,
        )
        self.norm = RMSNormGated(self.d_inner, 1e-5, None, False, **made)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """The block's output of u (batch, L, d_model)."""
        initial = self.init_states.expand(u.shape[0], -1, -1, -1) if self.learnable_init_states else None
        return mamba_split_conv1d_scan_combined(
            self.in_proj(u),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            self._A(),
            self.D,
            self.chunk_size,
            initial_states=initial,
            seq_idx=seq_idx,
            dt_limit=self.dt_limit,
            activation=self.activation,
            rmsnorm_weight=self.norm.weight,
            rmsnorm_eps=self.norm.eps,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=False,
        )
