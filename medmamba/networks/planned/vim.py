"""Vim in its planned form: bidirectional Mamba on the flattened map in the U-Net frame.

Source: Zhu et al. 2024, Vision Mamba (arXiv:2401.09417), algorithm 1, and its public code; Gu and Dao 2023
(arXiv:2312.00752) for the plain layer.

Glossary: L tokens, d width, E = expand * d inner width, N state size, R rank of the step size.

    [x | z] = in_proj(tokens);  f(x, z) = scan(SiLU(causal_conv(x))) * SiLU(z)
    v2:    y = f_forward(x, z) + flip(f_backward(flip(x), flip(z))), each direction with its own parameters
    v1:    one set of parameters, computed once on the forward sequence; only the scan runs in both directions
    none:  y = f_forward(x, z), plain Mamba
    out = out_proj(y) (halved if ``divide``), times the layer scale ``gamma`` if there is one

Running backwards is a route, not a flip, and a causal convolution of the flipped sequence is the mirrored convolution.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.linear import Linear, linear
from medmamba.networks.blocks.residual import PreNorm, RMSNorm
from medmamba.networks.blocks.scan_core import ScanModule, at_least_float32, auto_dt_rank, initial_dt_bias, scanned
from medmamba.networks.planned.registry import Count, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import routes_per_stage
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.networks.routes import routes
from medmamba.plans.families import route_count

Directions = Literal["none", "v1", "v2"]


class SelectiveDirection(ScanModule):
    """Selection, decay and skip of one direction; only the decay if it borrows the rest (v1)."""

    def __init__(self, inner: int, state_size: int, dt_rank: int, *, own_inputs: bool = True) -> None:
        super().__init__()
        self.dt_rank, self.state_size = dt_rank, state_size
        if own_inputs:
            self.x_proj = Linear(inner, dt_rank + 2 * state_size, bias=False)
            self.dt_proj = Linear(dt_rank, inner)
            bound = dt_rank**-0.5
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
            with torch.no_grad():
                self.dt_proj.bias.copy_(initial_dt_bias(inner))
            self.D = nn.Parameter(torch.ones(inner))
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1).float().log().repeat(inner, 1))

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt (B, L, E) without its bias, B and C (B, L, N)."""
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.state_size, self.state_size], dim=-1)
        return linear(dt, self.dt_proj.weight), B, C


class Direction(nn.Module):
    """One direction: depthwise causal convolution, then the scan's parameters; either may be absent."""

    def __init__(
        self, inner: int, kernel: int, scan: SelectiveDirection | None, *, backwards: bool, bias: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.backwards = kernel, backwards
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, bias=bias) if kernel else None
        self.scan = scan

    def forward(self, x: Tensor) -> Tensor:
        """SiLU of the convolution of (B, L, E) over the tokens before (or, backwards, after) each one."""
        assert self.conv1d is not None
        weight = self.conv1d.weight.flip(-1) if self.backwards else self.conv1d.weight
        sides = (0, self.kernel - 1) if self.backwards else (self.kernel - 1, 0)
        y = F.conv1d(F.pad(x.mT, sides), weight, self.conv1d.bias, groups=x.shape[-1])
        return F.silu(y.mT.contiguous())


class BidirectionalMamba(nn.Module):
    """Token mixer (B, L, d) to (B, L, d).

    ``directions`` and ``divide`` (v2 only) as above; ``layer_scale`` is the initial value of ``gamma``; ``bias`` is of
    in_proj and out_proj; ``dt_rank`` is ceil(d / 16) if None; ``use_scan=False`` leaves the scans out (identity).
    """

    def __init__(
        self,
        width: int,
        *,
        state_size: int = 16,
        expand: float = 2.0,
        kernel: int = 4,
        directions: Directions = "v2",
        divide: bool = True,
        layer_scale: float | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        dt_rank: int | None = None,
        use_scan: bool = True,
    ) -> None:
        super().__init__()
        if directions not in ("none", "v1", "v2"):
            raise ConfigError(f"directions must be none, v1 or v2, got {directions!r}.")
        inner = int(expand * width)
        rank = dt_rank or auto_dt_rank(width)

        def scan(own_inputs: bool = True) -> SelectiveDirection | None:
            return SelectiveDirection(inner, state_size, rank, own_inputs=own_inputs) if use_scan else None

        self.divide = divide and directions == "v2"
        self.in_proj = Linear(width, 2 * inner, bias=bias)
        self.forwards = Direction(inner, kernel, scan(), backwards=False, bias=conv_bias)
        self.backwards: Direction | None = None
        if directions == "v2":
            self.backwards = Direction(inner, kernel, scan(), backwards=True, bias=conv_bias)
        elif directions == "v1" and use_scan:
            self.backwards = Direction(inner, 0, scan(own_inputs=False), backwards=True)
        self.out_proj = Linear(inner, width, bias=bias)
        self.gamma = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale is not None else None

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)  # (B, L, E) each
        inputs = [self.forwards(x)]
        if self.backwards is not None:
            inputs.append(self.backwards(x) if self.backwards.conv1d is not None else inputs[0])
        y = self._scan(inputs) * F.silu(z)  # the gate is the same in both directions
        out = self.out_proj(y / 2 if self.divide else y)
        return out if self.gamma is None else out * self.gamma

    def _scan(self, inputs: list[Tensor]) -> Tensor:
        """Scan each direction's input (B, L, E) and add; without scans just add."""
        scans = [d.scan for d in (self.forwards, self.backwards) if d is not None and d.scan is not None]
        if not scans:
            return sum(inputs[1:], start=inputs[0])
        # A direction without its own selection (v1) uses that of the first.
        chosen = [(s if hasattr(s, "x_proj") else scans[0]).select(u) for s, u in zip(scans, inputs, strict=True)]
        dt, B, C = (torch.stack(parts, dim=2) for parts in zip(*chosen, strict=True))  # (B, L, K, .)
        shared = [s if hasattr(s, "D") else scans[0] for s in scans]
        same = all(u is inputs[0] for u in inputs)
        return scanned(
            inputs[0] if same else torch.stack(inputs, dim=2),
            dt,
            torch.stack([-torch.exp(at_least_float32(s.A_log)) for s in scans]),
            B,
            C,
            D=torch.stack([at_least_float32(s.D) for s in shared]),
            dt_bias=torch.stack([at_least_float32(s.dt_proj.bias) for s in shared]),
            routes=routes(f"bidirectional:{len(scans)}", (1, inputs[0].shape[1]), inputs[0].device),
            backend=scans[0].scan_backend,
        )


class FlatMixer(nn.Module):
    """A mixer of sequences applied to a map (B, *S, C) in row-major order."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flatten(1, -2)).unflatten(1, x.shape[1:-1])


@unet_family("vim")
def vim(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 8,
    expand: WidthRatio = 1.0,
    directions: Directions = "v2",
    schedule: str = "constant",
    use_scan: bool = True,
) -> BlockFactory:
    """Vim's bidirectional Mamba on the flattened map (arXiv:2401.09417).

    Args:
        state_size, expand: of the scans, as for ``vm_unet``.
        directions: "v2" (own parameters per direction), "v1" (shared) or "none" (forward only).
        schedule: as for ``vm_unet``; a stage with one route scans forward only.
        use_scan: False leaves the scans out.
    """
    names = routes_per_stage(topology, "bidirectional", schedule)

    def block(stage: int, index: int, width: int) -> nn.Module:
        ways = directions if route_count(names[stage], topology.spatial_dims) > 1 else "none"
        mixer = BidirectionalMamba(width, state_size=state_size, expand=expand, directions=ways, use_scan=use_scan)
        return PreNorm(RMSNorm(width), FlatMixer(mixer), rate(stage, index))

    return block
