"""Shipped in bundles: the planned networks in TorchScript, one file for every patch size and batch size.

A trace would write down one grid: its routes, steps and padding. So the network's own modules are compiled by
``torch.jit.script``, and the few that it cannot compile (norm, scan mixer, the frame with its padding) are exchanged
for some that compute the same from the size they see, with the same weights.

Glossary, as in ``scan_core.py``: B batch, L tokens, E inner width, N state size, R rank of the step, K routes.
"""

# No `from __future__ import annotations` here: TorchScript reads the annotations of a class as types, not as text.
from collections.abc import Iterable
from copy import deepcopy
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.convolution import ConvNormAct, Downsample, InstanceNorm, ResidualConv, Upsample
from medmamba.networks.blocks.residual import DropPath
from medmamba.networks.blocks.scan_core import ScanCore
from medmamba.networks.blocks.vss import SS2D, VSSBlock
from medmamba.networks.planned.plain_unet import ConvUNet
from medmamba.networks.planned.unet import Blocks, DecoderStage, Encoder, PlannedUNet
from medmamba.networks.routes import routes

SCRIPTABLE = (ConvNormAct, Downsample, ResidualConv, Upsample, DecoderStage, VSSBlock)  # unchanged


class NotScriptable(Exception):
    """A part that these terms do not cover."""

    def __init__(self, part: str) -> None:
        super().__init__(
            f"{part} cannot be scripted, only traced: give ckpt_export --use_trace True and --input_shape."
        )
        self.part = part


def scriptable(folds: Iterable[nn.Module]) -> nn.Module:
    """A module that ``torch.jit.script`` compiles: the mean of the folds' logits. Raises NotScriptable."""
    return _Mean([_unet(deepcopy(network)) for network in folds]).eval()


def _unet(network: nn.Module) -> nn.Module:
    if isinstance(network, ConvUNet):
        return _Unet(list(network.encoder), list(network.decoder), network.heads[0], network.total_stride, True)
    if not isinstance(network, PlannedUNet) or not isinstance(network.encoder, Encoder):
        raise NotScriptable(type(network).__name__)
    encoder = [network.stem]
    for stage in network.encoder.stages:
        assert isinstance(stage, nn.ModuleDict)
        encoder.append(nn.Sequential(*stage.values()))
    decoder = list(network.decoder)
    image_twice = network.image_skip is not None
    if network.image_skip is not None and network.final is not None:
        # A stem that strides: above it a light convolution of the image itself, and both see the image.
        encoder.insert(0, network.image_skip)
        decoder.append(network.final)
    down, up = ([_exchanged(stage) for stage in stages] for stages in (encoder, decoder))
    return _Unet(down, up, network.heads[0], network.total_stride, False, image_twice)


def _exchanged(module: nn.Module) -> nn.Module:
    """The module with every part that cannot be scripted exchanged, in place, for one of the same weights that can."""
    if isinstance(module, SS2D):
        return _Mixer(module)
    if isinstance(module, InstanceNorm):
        return _Norm(module)
    if isinstance(module, DropPath):
        return nn.Identity()
    if not isinstance(module, (*SCRIPTABLE, Blocks)) and not type(module).__module__.startswith("torch."):
        raise NotScriptable(type(module).__name__)
    for name, child in module.named_children():
        setattr(module, name, _exchanged(child))
    if isinstance(module, Blocks):
        return _ChannelsLast(nn.Sequential(*module)) if len(module) else nn.Identity()
    return module


class _Mean(nn.Module):
    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([member(image) for member in self.members]).mean(0)


class _Unet(nn.Module):
    """Pads (``doubled``: to no bottleneck of one voxel), encodes, decodes, crops; stage 2 may also get the image."""

    def __init__(
        self,
        encoder: list[nn.Module],
        decoder: list[nn.Module],
        head: nn.Module,
        stride: tuple[int, ...],
        doubled: bool,
        image_twice: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = nn.ModuleList(encoder), nn.ModuleList(decoder), head
        self.stride: list[int] = list(stride)
        self.doubled, self.image_twice = doubled, image_twice

    def forward(self, image: Tensor) -> Tensor:
        padded = self._padded(image, self.stride)
        one = True
        for axis, stride in enumerate(self.stride):
            one = one and padded.shape[2 + axis] == stride
        if self.doubled and one:
            wider = [stride for stride in self.stride]
            wider[-1] = 2 * wider[-1]
            padded = self._padded(padded, wider)
        skips: list[Tensor] = []
        x = padded
        for number, stage in enumerate(self.encoder):
            x = stage(padded if number == 1 and self.image_twice else x)
            skips.append(x)
        x = skips.pop()
        for stage in self.decoder:
            x = stage(x, skips)
        x = self.head(x)
        for axis in range(len(self.stride)):
            x = x.narrow(2 + axis, 0, image.shape[2 + axis])
        return x

    def _padded(self, x: Tensor, multiple: list[int]) -> Tensor:
        sides: list[int] = []
        for back in range(len(multiple)):
            axis = len(multiple) - 1 - back  # torch counts from the last axis
            size = x.shape[2 + axis]
            sides += [0, (multiple[axis] - size % multiple[axis]) % multiple[axis]]
        return F.pad(x, sides, mode="replicate")


class _Norm(nn.Module):
    """Instance norm; of a map of one voxel only the shift is left."""

    def __init__(self, norm: InstanceNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        axes = list(range(2, x.dim()))
        shape = [1, -1] + [1] * len(axes)
        centred = x - x.mean(axes, keepdim=True)
        rstd = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + self.eps)
        return centred * (self.weight.view(shape) * rstd) + self.bias.view(shape)


class _ChannelsLast(nn.Module):
    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x.movedim(1, -1)).movedim(-1, 1)


class _Mixer(nn.Module):
    """The gated scan mixer (``SS2D``)."""

    def __init__(self, mixer: SS2D) -> None:
        super().__init__()
        self.in_proj, self.conv = mixer.in_proj, mixer.conv
        self.out_norm, self.out_proj = mixer.out_norm, mixer.out_proj
        self.scan = nn.Identity() if mixer.scan is None else _Scan(mixer, mixer.scan)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        u = self.scan(F.silu(self.conv(u.movedim(-1, 1)).movedim(1, -1)))
        return self.out_proj(self.out_norm(u) * F.silu(z))


class _Scan(nn.Module):
    """The scan along routes that are rasters: each an order of the axes, there or back."""

    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    decay: Tensor
    skip: Tensor

    def __init__(self, mixer: SS2D, core: ScanCore) -> None:
        super().__init__()
        self.axes, self.backwards = rasters(mixer.route, next(mixer.conv.parameters()).dim() - 2)
        self.K, self.R, self.N = core.routes, core.dt_rank, core.state_size
        self.chunk = 256  # positions whose recurrence is solved together; bounds the memory
        tensors = {
            "x_proj": core.x_proj_weight.flatten(0, 1),
            "dt_proj": core.dt_projs_weight,
            "dt_bias": core.dt_projs_bias,
            "decay": -torch.exp(core.A_logs.float()).unflatten(0, (core.routes, core.inner)),
            "skip": core.Ds.float().unflatten(0, (core.routes, core.inner)),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, u: Tensor) -> Tensor:
        grid = list(u.shape[1:-1])
        return self._scan(u.flatten(1, -2), self._table(grid, u.device)).reshape(u.shape)

    def _table(self, grid: list[int], device: torch.device) -> Tensor:
        """(K, L): the tokens in the order in which each route visits them."""
        count = 1
        for size in grid:
            count *= size
        index = torch.arange(count, device=device).reshape(grid)
        orders: list[Tensor] = []
        for number in range(self.K):
            order = index.permute(self.axes[number]).reshape(-1)
            orders.append(order.flip(0) if self.backwards[number] else order)
        return torch.stack(orders)

    def _scan(self, x: Tensor, table: Tensor) -> Tensor:
        """(B, L, E) to (B, L, E), summed over the routes."""
        batch, length, inner = x.shape
        parts = F.linear(x, self.x_proj).reshape(batch, length, self.K, self.R + 2 * self.N)
        low, write, read = torch.split(parts, [self.R, self.N, self.N], dim=-1)
        step = F.softplus(torch.einsum("blkr,ker->blke", low, self.dt_proj) + self.dt_bias)
        tokens = x.unsqueeze(2).expand(-1, -1, self.K, -1)
        skip = tokens * self.skip
        step, tokens = self._visited(step, table), self._visited(tokens, table)
        write, read = self._visited(write, table), self._visited(read, table)
        state = torch.zeros([batch, self.K, inner, self.N], device=x.device, dtype=x.dtype)
        found: list[Tensor] = []
        start = 0
        while start < length:
            size = min(self.chunk, length - start)
            d = step.narrow(1, start, size)
            a = torch.exp(d.unsqueeze(-1) * self.decay)  # (B, T, K, E, N)
            b = (d * tokens.narrow(1, start, size)).unsqueeze(-1) * write.narrow(1, start, size).unsqueeze(3)
            b = torch.cat([b[:, :1] + a[:, :1] * state.unsqueeze(1), b[:, 1:]], 1)
            reach = 1
            while reach < size:  # after each round (a, b) describe twice as many positions
                b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
                a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
                reach *= 2
            found.append((b * read.narrow(1, start, size).unsqueeze(3)).sum(-1))
            state = b[:, -1]
            start += size
        y = self._visited(torch.cat(found, 1), table.argsort(1)) + skip
        return y.sum(2)

    def _visited(self, value: Tensor, table: Tensor) -> Tensor:
        """Rows of (B, L, K, ...) in the order of the routes."""
        index = table.t().reshape(1, table.shape[1], table.shape[0], 1)
        return value.gather(1, index.expand(value.shape))


def rasters(name: str, dims: int) -> tuple[list[list[int]], list[bool]]:
    """Each route as an order of the axes, slowest first, and whether it runs backwards; NotScriptable if no raster."""
    shape = (2, 3, 5)[:dims]
    index = torch.arange(2 * 3 * (5 if dims == 3 else 1)).reshape(shape)
    axes, backwards = [], []
    for order in routes(name, shape).long():
        for candidate in permutations(range(dims)):
            raster = index.permute(candidate).reshape(-1)
            if torch.equal(order, raster) or torch.equal(order, raster.flip(0)):
                axes.append(list(candidate))
                backwards.append(not torch.equal(order, raster))
                break
        else:
            raise NotScriptable(f"route set {name}")
    return axes, backwards
