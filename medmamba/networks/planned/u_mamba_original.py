"""U-Mamba as its authors' code builds it, for the weights of trained models.

Source: Ma et al. 2024 (arXiv:2401.04722); the public code (bowang-lab/U-Mamba, Apache-2.0) in its form of May 2024,
where Enc's deepest stages scan channels and the decoder upsamples without transposed convolutions. What it does:

    block:    norm(conv(act(norm(conv_strided(x))))) + conv1_strided(x), activated; further blocks have x itself as
              shortcut. The stem is such blocks at full resolution, before those of stage 0.
    mamba(x): Mamba(LN(tokens)), which replaces x: nothing is added. Tokens are voxels, row by row; where a map has no
              more voxels than channels, tokens are the channels, and the width is the number of voxels: such weights
              fit one patch size.
    decoder:  nearest neighbours, a convolution with an edge of 1, the skip beside it, blocks. In 2D the last stage has
              no skip.
    Bot has mamba behind the bottleneck; Enc behind every encoder stage in 3D, and in 2D behind every second one, the
    bottleneck included.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.maps import CONV
from medmamba.networks.planned.plain_unet import USUAL, ConvNorm, ConvUNet, encoder_numbers, initialise
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.residual_unet import ResidualBlock
from medmamba.networks.planned.unet import Topology
from medmamba.networks.planned.vim import BidirectionalMamba

original = partial(network, full_resolution_only=True, min_stages=3, default_blocks=(2,), retired=True)


@original("u_mamba_bot_original")
def u_mamba_bot(
    topology: Topology, *, patch_size: Sequence[int], decoder_convs: int | Sequence[int] = 2, use_scan: bool = True
) -> nn.Module:
    """U-Mamba Bot of the authors' code.

    ``decoder_convs``: blocks per decoder stage, from the bottleneck up.
    """
    return _u_mamba(topology, patch_size, decoder_convs, use_scan, {len(topology.strides) - 1}, channels=False)


@original("u_mamba_enc_original")
def u_mamba_enc(
    topology: Topology, *, patch_size: Sequence[int], decoder_convs: int | Sequence[int] = 2, use_scan: bool = True
) -> nn.Module:
    """U-Mamba Enc of the authors' code; ``patch_size`` decides which stages scan channels."""
    last = len(topology.strides) - 1
    mixed = set(range(last, -1, -1 if topology.spatial_dims == 3 else -2))
    return _u_mamba(topology, patch_size, decoder_convs, use_scan, mixed, channels=True)


def _u_mamba(
    topology: Topology,
    patch_size: Sequence[int],
    decoder_convs: int | Sequence[int],
    use_scan: bool,
    mixed: set[int],
    *,
    channels: bool,
) -> nn.Module:
    """``mixed`` are the stages with Mamba; ``channels`` whether it may scan channels."""
    stages = len(topology.strides)
    counts = [decoder_convs] * (stages - 1) if isinstance(decoder_convs, int) else list(decoder_convs)
    if len(counts) != stages - 1 or len(patch_size) != topology.spatial_dims:
        raise ConfigError(f"decoder_convs and patch_size must fit {stages} stages in {topology.spatial_dims}D.")
    encoder, grid = [], list(patch_size)
    for stage, (before, width, kernel, stride, blocks) in enumerate(encoder_numbers(topology)):
        grid = [edge // step for edge, step in zip(grid, stride, strict=True)]
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if stage == 0:
            parts["stem"] = _blocks(before, width, kernel, None, blocks)
            before = width
        parts["blocks"] = _blocks(before, width, kernel, stride, blocks)
        if stage in mixed:
            scanned = prod(grid) if channels and prod(grid) <= width else None
            parts["mamba"] = MambaLayer(width, scanned, use_scan=use_scan)
        encoder.append(nn.Sequential(parts))
    decoder = []
    for stage, count in zip(reversed(range(stages - 1)), counts, strict=True):
        skip = topology.spatial_dims == 3 or stage > 0
        decoder.append(_Up(topology, stage, count, skip=skip))
    return ConvUNet(topology, encoder, decoder).apply(initialise)


def _blocks(before: int, width: int, kernel: Sequence[int], stride: Sequence[int] | None, count: int) -> nn.Sequential:
    same = [1] * len(kernel)
    more = (ResidualBlock(width, width, kernel, same) for _ in range(count - 1))
    return nn.Sequential(ProjectedBlock(before, width, kernel, stride or same), *more)


class ProjectedBlock(nn.Module):
    """Two convolutions beside one with an edge of 1 and the same stride, which nothing normalises."""

    def __init__(self, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        dims = len(kernel)
        self.first = ConvNorm(before, width, kernel, stride)
        self.second = ConvNorm(width, width, kernel, activate=False)
        self.shortcut = CONV[dims](before, width, (1,) * dims, tuple(stride))
        self.act = USUAL.activation()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(self.first(x))
        inner += self.shortcut(x)
        return self.act(inner)


class MambaLayer(nn.Module):
    """(B, C, *S) to the same, without a shortcut; ``voxels``: how many a map has where channels are the tokens."""

    def __init__(self, width: int, voxels: int | None, *, use_scan: bool) -> None:
        super().__init__()
        self.voxels = voxels
        own = voxels or width
        self.norm = nn.LayerNorm(own)
        self.mixer = BidirectionalMamba(own, directions="none", use_scan=use_scan)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, L)
        if self.voxels is None:
            mixed = self.mixer(self.norm(tokens.mT)).mT
        elif tokens.shape[-1] == self.voxels:
            mixed = self.mixer(self.norm(tokens))
        else:
            raise ConfigError(
                f"This network has weights for a map of {self.voxels} voxels, and got one of {tokens.shape[-1]}. Keep "
                "the patch size of its plan."
            )
        return mixed.reshape(x.shape).to(x.dtype)


class _Up(nn.Module):
    """To the resolution of a stage: the last skip is taken from the list, and used if ``skip``."""

    def __init__(self, topology: Topology, stage: int, count: int, *, skip: bool) -> None:
        super().__init__()
        t, width = topology, topology.features_per_stage[stage]
        self.skip = skip
        self.conv = CONV[t.spatial_dims](t.features_per_stage[stage + 1], width, 1)
        self.grow = nn.Upsample(scale_factor=tuple(map(float, t.strides[stage + 1])), mode="nearest")
        self.blocks = _blocks(2 * width if skip else width, width, t.kernels[stage], None, count)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.grow(self.conv(x))  # each voxel alone: the same as convolved behind it, for fewer voxels
        last = skips.pop()
        return self.blocks(torch.cat([x, last], dim=1) if self.skip else x)
