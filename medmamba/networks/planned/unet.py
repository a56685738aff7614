"""The U-Net frame that a plan configures: convolutions for the detail, scan blocks for the context.

It owns resolution (drawn in docs/reference/networks.md): strides, padding to any input size, skips, deep supervision.
The blocks of a stage come from a factory. No weight depends on a patch size. Why convolutions: on
4 x 4 patches the published networks lose structures a few voxels wide, and a scan at full resolution is expensive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medmamba.errors import ConfigError
from medmamba.networks.blocks.convolution import MEMORY_FORMAT, ConvNormAct, Downsample, ResidualConv, Upsample
from medmamba.networks.blocks.maps import CONV, channels_last, crop_to, pad_to_multiple
from medmamba.plans.sizes import MOST_CHANNELS, check_size

STEMS = ("conv", "patch")  # convolutions at the resolution of the first stage, or one patch embedding and blocks


@dataclass(frozen=True)
class Topology:
    """The numbers of a U-Net, as a plan gives them.

    Attributes:
        out_channels: classes including background.
        strides: per stage, one stride per axis; the first stage's is the stem's.
        blocks_per_stage: stage 0 of a convolution stem has convolutions, all others scan blocks.
        kernels: edge of the convolutions per stage and axis; 3 everywhere if None (1 along thick slices).
        stem: "conv" (convolutions at the resolution of strides[0]) or "patch" (one patch embedding, then blocks).
        deep_supervision: whether training returns logits of every decoder resolution.
    """

    spatial_dims: int
    in_channels: int
    out_channels: int
    strides: tuple[tuple[int, ...], ...]
    features_per_stage: tuple[int, ...]
    blocks_per_stage: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...] = ()
    stem: str = "conv"
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        dims, stages = self.spatial_dims, len(self.strides)
        if dims not in (2, 3):
            raise ConfigError(f"spatial_dims must be 2 or 3, got {dims}.")
        if self.stem not in STEMS:
            raise ConfigError(f"stem must be one of {', '.join(STEMS)}, got {self.stem!r}.")
        if stages < 2:
            raise ConfigError(f"A U-Net needs at least 2 stages, got strides {self.strides}.")
        for name in ("in_channels", "out_channels"):
            if not 1 <= getattr(self, name) <= MOST_CHANNELS:
                raise ConfigError(f"{name} must be from 1 to {MOST_CHANNELS}, got {getattr(self, name)}.")
        if not self.kernels:
            object.__setattr__(self, "kernels", ((3,) * dims,) * stages)
        for name in ("features_per_stage", "blocks_per_stage", "kernels"):
            if len(getattr(self, name)) != stages:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} entries for {stages} stages of strides; give one per stage."
                )
        for name in ("strides", "kernels"):
            for stage, axes in enumerate(getattr(self, name)):
                if len(axes) != dims:
                    raise ConfigError(f"{name}[{stage}] must be {dims} numbers, got {list(axes)}.")
        try:
            check_size(self.strides, self.features_per_stage, self.blocks_per_stage, self.kernels)
        except ValueError as error:
            raise ConfigError(f"{error}.") from None
        if any(k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ConfigError(f"Convolution kernels must be odd, got {[list(k) for k in self.kernels]}.")

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Stride of the bottleneck per axis: what an input is padded to a multiple of."""
        return tuple(prod(stride[axis] for stride in self.strides) for axis in range(self.spatial_dims))

    @property
    def block_places(self) -> list[tuple[int, int]]:
        """(stage, index) of every block, from the image inwards."""
        return [(i, j) for i, count in enumerate(self.blocks_per_stage) for j in range(count)]

    @property
    def full_resolution(self) -> bool:
        """Whether the stem keeps the image's resolution."""
        return prod(self.strides[0]) == 1


# (stage, index of the block in its stage, width) -> a block on channels-last maps (B, *S, width), or None for no block.
BlockFactory = Callable[[int, int, int], nn.Module | None]


class PlannedNetwork(nn.Module):
    """The interface of every planned network for training and prediction.

    ``heads`` make the logits, fine to coarse: one without deep supervision. ``decoder`` goes from the bottleneck up;
    each stage takes a map and the list of skips.
    """

    heads: nn.ModuleList
    decoder: nn.ModuleList

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.topology = topology
        self.out_channels = topology.out_channels
        self.total_stride = topology.total_stride
        self.deep_supervision = topology.deep_supervision

    def _decoded(self, skips: list[Tensor]) -> list[Tensor]:
        """Decoder features (B, C, *S), fine to coarse, the bottleneck not among them."""
        features = [skips.pop()]
        for stage in self.decoder:
            features.insert(0, stage(features[0], skips))
        return features[:-1]

    def _logits(self, features: Sequence[Tensor], image: Tensor, padded: Tensor) -> Tensor | list[Tensor]:
        """Logits of the finest feature, or in training those of all, cropped to what the image covers."""
        if not (self.training and self.deep_supervision):
            return crop_to(self.heads[0](features[0]), image.shape[2:])
        outputs = []
        for head, feature in zip(self.heads, features, strict=False):
            scale = [n // f for n, f in zip(padded.shape[2:], feature.shape[2:], strict=True)]
            outputs.append(crop_to(head(feature), [-(-n // s) for n, s in zip(image.shape[2:], scale, strict=True)]))
        return outputs


class PlannedUNet(PlannedNetwork):
    """(B, in, *S) to logits (B, out, *S), any S.

    In training with deep supervision a list of logits, fine to coarse: the first at full resolution, number i at the
    resolution of stage i, each axis ceil(S / stride).

    Args:
        topology: the plan's numbers.
        stem: image to features of stage 0, (B, f0, *S/strides[0]).
        encoder: features of stage 0 to those of all stages, a list from fine to coarse.
        decoder_convs, checkpoint_blocks: as in :class:`~.registry.FrameOptions`.
    """

    def __init__(
        self,
        topology: Topology,
        stem: nn.Module,
        encoder: nn.Module,
        *,
        decoder_convs: int = 1,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__(topology)
        t = topology
        self.checkpoint_blocks = checkpoint_blocks
        widths = t.features_per_stage
        self.stem = stem
        self.encoder = encoder
        self.decoder = nn.ModuleList(
            DecoderStage(widths[i + 1], widths[i], widths[i], t.strides[i + 1], t.kernels[i], decoder_convs)
            for i in reversed(range(len(widths) - 1))
        )
        # A stem that strides leaves the image's own resolution without features: a light convolution provides them.
        self.image_skip: nn.Module | None = None
        self.final: nn.Module | None = None
        top = widths[0]
        if not t.full_resolution:
            top = max(8, widths[0] // 2)
            self.image_skip = ConvNormAct(t.in_channels, top, t.kernels[0])
            self.final = DecoderStage(widths[0], top, top, t.strides[0], t.kernels[0], decoder_convs)
        head = CONV[t.spatial_dims]
        self.heads = nn.ModuleList([head(top, t.out_channels, 1)])
        if t.deep_supervision:
            coarse = widths[1:-1] if t.full_resolution else widths[:-1]
            self.heads.extend(head(width, t.out_channels, 1) for width in coarse)
        self.to(memory_format=MEMORY_FORMAT[t.spatial_dims])  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        x = pad_to_multiple(image, self.total_stride)
        x = x.contiguous(memory_format=MEMORY_FORMAT[self.topology.spatial_dims])
        features = self._decoded(self.encoder(self.stem(x), self.checkpoint_blocks and self.training))
        if self.final is not None and self.image_skip is not None:
            features.insert(0, self.final(features[0], [self.image_skip(x)]))
        return self._logits(features, image, x)


class Encoder(nn.Module):
    """Stage after stage: downsampling, residual convolutions for the detail, then blocks for the context."""

    def __init__(self, topology: Topology, block: BlockFactory, *, conv_blocks: int = 1) -> None:
        super().__init__()
        t, widths = topology, topology.features_per_stage
        self.stages = nn.ModuleList()
        for i in range(1, len(widths)):
            stage = nn.ModuleDict({"downsample": Downsample(widths[i - 1], widths[i], t.strides[i])})
            stage["convs"] = residual_convs(t, i, conv_blocks)
            stage["blocks"] = Blocks(stage_blocks(t, block, i))
            self.stages.append(stage)

    def forward(self, x: Tensor, recompute: bool = False) -> list[Tensor]:
        maps = [x]
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleDict)
            maps.append(stage["blocks"](stage["convs"](stage["downsample"](maps[-1])), recompute))
        return maps


class Blocks(nn.ModuleList):
    """Channels-last blocks applied one after the other to a (B, C, *S) map."""

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        if not len(self):
            return x
        x = channels_last(x)
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x.movedim(-1, 1)


def residual_convs(topology: Topology, stage: int, count: int) -> nn.Sequential:
    """So many residual convolutions of one stage."""
    width, kernel = topology.features_per_stage[stage], topology.kernels[stage]
    return nn.Sequential(*(ResidualConv(width, width, kernel) for _ in range(count)))


def stage_blocks(topology: Topology, block: BlockFactory, stage: int) -> list[nn.Module]:
    """The blocks of one stage."""
    width = topology.features_per_stage[stage]
    made = (block(stage, j, width) for j in range(topology.blocks_per_stage[stage]))
    return [module for module in made if module is not None]


class DecoderStage(nn.Module):
    """Upsampling, the last skip (taken from the list) beside it, convolutions."""

    def __init__(
        self,
        in_width: int,
        skip_width: int,
        width: int,
        stride: Sequence[int],
        kernel: Sequence[int],
        convs: int,
        *,
        conv: Callable[[int, int, Sequence[int]], nn.Module] = ConvNormAct,
    ) -> None:
        super().__init__()
        self.upsample = Upsample(in_width, width, stride)
        self.convs = nn.Sequential(
            conv(width + skip_width, width, kernel), *(conv(width, width, kernel) for _ in range(convs - 1))
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        x = torch.cat([self.upsample(x), skips.pop()], dim=1)
        for conv in self.convs:  # one by one: the first frees the concatenated map, the largest of a prediction
            x = conv(x)
        return x


def build_stem(topology: Topology, block: BlockFactory) -> nn.Module:
    """Image to features of stage 0: convolutions, or one patch embedding and the family's own blocks."""
    t = topology
    width, kernel = t.features_per_stage[0], t.kernels[0]
    if t.stem == "patch":
        return nn.Sequential(Downsample(t.in_channels, width, t.strides[0]), Blocks(stage_blocks(t, block, 0)))
    strided = None if t.full_resolution else Downsample(t.in_channels, width, t.strides[0])
    first = strided or ConvNormAct(t.in_channels, width, kernel)
    return nn.Sequential(first, *(ConvNormAct(width, width, kernel) for _ in range(t.blocks_per_stage[0] - 1)))
