"""nnU-Net's default network, ``plain_unet`` (PlainConvUNet), and the parts that its residual form shares.

Source: Isensee et al. 2021 (arXiv:1904.08128); dynamic-network-architectures 0.4.4, whose parameter counts and logits
tests/networks/test_nnunet_networks.py compares. Strides, widths, kernels and blocks are the plan's.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.convolution import SLOPE
from medmamba.networks.blocks.maps import CONV, pad_to_multiple
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import DecoderStage, PlannedNetwork, Topology
from medmamba.plans.sizes import MOST_BLOCKS

NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@network("plain_unet", full_resolution_only=True, min_stages=3, default_blocks=(2,))
def plain_unet(topology: Topology, *, decoder_convs: int | Sequence[int] = 2) -> nn.Module:
    """nnU-Net's default network, PlainConvUNet: two convolutions per stage.

    ``decoder_convs``: convolutions per decoder stage, from the bottleneck up.
    """
    encoder = (
        nn.Sequential(
            ConvNorm(before, width, kernel, stride), *(ConvNorm(width, width, kernel) for _ in range(convs - 1))
        )
        for before, width, kernel, stride, convs in encoder_numbers(topology)
    )
    return ConvUNet(topology, encoder, decoder_stages(topology, decoder_convs)).apply(initialise)


class ConvUNet(PlannedNetwork):
    """A U-Net of convolutions with one module per encoder stage, from the image to the bottleneck."""

    def __init__(self, topology: Topology, encoder: Iterable[nn.Module], decoder: Iterable[nn.Module]) -> None:
        super().__init__(topology)
        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(decoder)
        supervised = topology.features_per_stage[: -1 if topology.deep_supervision else 1]
        self.heads = nn.ModuleList(CONV[topology.spatial_dims](width, topology.out_channels, 1) for width in supervised)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        x = padded = _with_variance(pad_to_multiple(image, self.total_stride), self.total_stride)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        return self._logits(self._decoded(skips), image, padded)


class ConvNorm(nn.Sequential):
    """Convolution (edge ``kernel`` per axis) and instance norm; with ``activate`` a leaky ReLU in place."""

    def __init__(
        self,
        in_width: int,
        width: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        bias: bool = True,
        activate: bool = True,
    ) -> None:
        dims = len(kernel)
        steps = tuple(stride or (1,) * dims)
        padding = tuple(edge // 2 for edge in kernel)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv"] = CONV[dims](in_width, width, tuple(kernel), steps, padding, bias=bias)
        parts["norm"] = NORM[dims](width, affine=True)
        if activate:
            parts["act"] = nn.LeakyReLU(SLOPE, inplace=True)
        super().__init__(parts)


def decoder_stages(topology: Topology, convs: int | Sequence[int]) -> list[nn.Module]:
    """Stages from the bottleneck up, each with its number of convolutions after the skip.

    Raises ConfigError if ``convs`` is not one number for all stages or one per stage, from 1 to ``MOST_BLOCKS``.
    """
    t, stages = topology, len(topology.strides) - 1
    counts = [convs] * stages if isinstance(convs, int) else list(convs)
    if len(counts) != stages or not all(1 <= count <= MOST_BLOCKS for count in counts):
        raise ConfigError(
            f"decoder_convs must be {stages} numbers from 1 to {MOST_BLOCKS}, one per stage, got {counts!s:.60}."
        )
    widths = t.features_per_stage
    return [
        DecoderStage(widths[i + 1], widths[i], widths[i], t.strides[i + 1], t.kernels[i], count, conv=ConvNorm)
        for i, count in zip(reversed(range(stages)), counts, strict=True)
    ]


def encoder_numbers(topology: Topology) -> list[tuple[int, int, Sequence[int], Sequence[int], int]]:
    """Width before, width, kernel, stride and number of blocks of each encoder stage.

    Raises ConfigError for a stage without blocks.
    """
    t = topology
    if min(t.blocks_per_stage) < 1:
        raise ConfigError(f"blocks_per_stage must be at least 1 in every stage, got {list(t.blocks_per_stage)}.")
    before = (t.in_channels, *t.features_per_stage[:-1])
    return list(zip(before, t.features_per_stage, t.kernels, t.strides, t.blocks_per_stage, strict=True))


def initialise(module: nn.Module) -> None:
    """Initial weights of a convolution as in nnU-Net: He et al. (arXiv:1502.01852) for the leaky ReLU, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _with_variance(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The padded input, twice as long where the bottleneck would be one voxel: a single value has no variance."""
    if tuple(x.shape[2:]) != tuple(stride):
        return x
    return pad_to_multiple(x, (*stride[:-1], 2 * stride[-1]))
