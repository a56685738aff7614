"""nnU-Net's default network, ``plain_unet`` (PlainConvUNet), and the parts that its residual form shares.

Source: Isensee et al. 2021 (arXiv:1904.08128); dynamic-network-architectures 0.4.4, whose parameter counts and logits
tests/networks/test_nnunet_networks.py compares. Strides, widths, kernels and blocks are the plan's.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.convolution import SLOPE
from medmamba.networks.blocks.maps import CONV, pad_to_multiple
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import DecoderStage, PlannedNetwork, Topology
from medmamba.plans.sizes import MOST_BLOCKS

NORMS: dict[str, dict[int, type[nn.Module]]] = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}
DROPOUT: dict[int, type[nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}


@dataclass(frozen=True)
class ConvParts:
    """What stands around every convolution; other values than these defaults are of trained nnU-Net models.

    Attributes:
        bias: of convolutions, and of those that upsample.
        norm: instance, batch or none, ``affine`` with a scale and a shift per channel.
        slope: of the leaky ReLU on the negative side; 0 is a ReLU.
        dropout: fraction of channels that training drops behind a convolution.
    """

    bias: bool = True
    norm: str = "instance"
    affine: bool = True
    eps: float = 1e-5
    slope: float = SLOPE
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.norm not in ("none", *NORMS):
            raise ConfigError(f"parts.norm must be one of none, {', '.join(NORMS)}, got {self.norm!r:.40}.")

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Self:
        """From the plain values of an option; None: the usual parts."""
        return cls(**given or {})

    def activation(self) -> nn.Module:
        """A new activation, in place."""
        return nn.LeakyReLU(self.slope, inplace=True) if self.slope else nn.ReLU(inplace=True)


USUAL = ConvParts()


@network("plain_unet", full_resolution_only=True, min_stages=3, default_blocks=(2,))
def plain_unet(
    topology: Topology, *, decoder_convs: int | Sequence[int] = 2, parts: Mapping[str, Any] | None = None
) -> nn.Module:
    """nnU-Net's default network, PlainConvUNet: two convolutions per stage.

    ``decoder_convs``: convolutions per decoder stage, from the bottleneck up; ``parts``: fields of :class:`ConvParts`.
    """
    conv = partial(ConvNorm, parts=ConvParts.of(parts))
    encoder = (
        nn.Sequential(conv(before, width, kernel, stride), *(conv(width, width, kernel) for _ in range(convs - 1)))
        for before, width, kernel, stride, convs in encoder_numbers(topology)
    )
    return ConvUNet(topology, encoder, decoder_stages(topology, decoder_convs, conv)).apply(initialise)


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
    """Convolution (edge ``kernel`` per axis) and norm; with ``activate`` dropout between them and a leaky ReLU behind.

    ``bias=False`` leaves it out whatever the parts have.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        bias: bool = True,
        activate: bool = True,
        parts: ConvParts = USUAL,
    ) -> None:
        dims = len(kernel)
        steps = tuple(stride or (1,) * dims)
        padding = tuple(edge // 2 for edge in kernel)
        made: OrderedDict[str, nn.Module] = OrderedDict()
        made["conv"] = CONV[dims](in_width, width, tuple(kernel), steps, padding, bias=bias and parts.bias)
        if activate and parts.dropout:
            made["dropout"] = DROPOUT[dims](parts.dropout)
        if parts.norm != "none":
            made["norm"] = NORMS[parts.norm][dims](width, eps=parts.eps, affine=parts.affine)
        if activate:
            made["act"] = parts.activation()
        super().__init__(made)


def decoder_stages(
    topology: Topology, convs: int | Sequence[int], conv: Callable[..., nn.Module] = ConvNorm
) -> list[nn.Module]:
    """Stages from the bottleneck up, each with its number of convolutions (``conv``) after the skip.

    Raises ConfigError if ``convs`` is not one number for all stages or one per stage, from 1 to ``MOST_BLOCKS``.
    """
    t, stages = topology, len(topology.strides) - 1
    counts = [convs] * stages if isinstance(convs, int) else list(convs)
    if len(counts) != stages or not all(1 <= count <= MOST_BLOCKS for count in counts):
        raise ConfigError(
            f"decoder_convs must be {stages} numbers from 1 to {MOST_BLOCKS}, one per stage, got {counts!s:.60}."
        )
    widths = t.features_per_stage
    made: list[nn.Module] = [
        DecoderStage(widths[i + 1], widths[i], widths[i], t.strides[i + 1], t.kernels[i], count, conv=conv)
        for i, count in zip(reversed(range(stages)), counts, strict=True)
    ]
    if isinstance(conv, partial) and not conv.keywords["parts"].bias:
        for stage in made:
            stage.get_submodule("upsample.conv").register_parameter("bias", None)
    return made


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
