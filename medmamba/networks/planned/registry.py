"""The table of networks that a plan can configure, and the decorators that put a network into it.

A network is one function from a :class:`~.unet.Topology` and its own options to a module (``@network``), or, in the
U-Net frame, to a factory of blocks (``@unet_family``). ``medmamba.networks.build`` imports the files that register,
and builds by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.residual import rising_rates
from medmamba.networks.planned.bounds import Count, CountOrZero, Option, options_of
from medmamba.networks.planned.unet import BlockFactory, Encoder, PlannedUNet, Topology, build_stem

Builder = Callable[..., nn.Module]
Rate = Callable[[int, int], float]  # (stage, block) -> stochastic-depth rate
BlockBuilder = Callable[..., BlockFactory]


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """Options of every network in the U-Net frame.

    Attributes:
        conv_blocks: residual convolution blocks before the blocks of each stage.
        decoder_convs: convolutions after each skip.
        drop_path: stochastic-depth rate of the last block; 0 at the first.
        checkpoint_blocks: recompute blocks in the backward pass instead of keeping their activations.
    """

    conv_blocks: CountOrZero = 1
    decoder_convs: Count = 1
    drop_path: float = 0.0
    checkpoint_blocks: bool = False


@dataclass(frozen=True)
class NetworkFacts:
    """A registered network: how it is built, and what a planner or a command asks without building it.

    Attributes:
        builder: (topology, **options) to the module.
        summary: the first line of its description.
        options: its options beside a plan's numbers.
        source: the module that defines it.
        full_resolution_only: strides[0] must be 1 on every axis and the stem a convolution.
        min_stages: resolutions it needs at least.
        channel_multiple: every stage's width must be a multiple of this, the first one's excepted if the stem is a
            convolution.
        default_blocks: blocks per stage where none are given; the last number holds for all further stages.
        planar: built for 2D images only.
        retired: built only for models that were trained with it.
        published: the numbers of its own that a published function has; a plan gives it channels and classes alone.
    """

    builder: Builder
    summary: str
    options: Mapping[str, Option]
    source: str
    full_resolution_only: bool = False
    min_stages: int = 2
    channel_multiple: int = 1
    default_blocks: tuple[int, ...] = (2, 1)
    planar: bool = False
    retired: bool = False
    published: dict[str, Any] | None = None

    @property
    def has_scan(self) -> bool:
        """Whether ``use_scan=False`` means something."""
        return "use_scan" in self.options


NETWORKS: dict[str, NetworkFacts] = {}
"""Every registered network by its name."""


def network(name: str, **facts: Any) -> Callable[[Builder], Builder]:
    """Register a builder ``(topology, **options) -> nn.Module`` under ``name``; ``facts`` as in NetworkFacts."""

    def register(builder: Builder) -> Builder:
        _add(name, builder, builder, options_of(builder), facts)
        return builder

    return register


def unet_family(
    name: str,
    *,
    frame: FrameOptions | None = None,
    encoder: Callable[..., nn.Module] = Encoder,
    **facts: Any,
) -> Callable[[BlockBuilder], BlockBuilder]:
    """Register ``(topology, rate, **options) -> block factory`` as a family in the U-Net frame.

    ``frame`` has the family's own defaults of the frame's options; ``encoder`` makes the encoder of
    :class:`~.unet.PlannedUNet` from (topology, block factory, conv_blocks=); ``facts`` as in NetworkFacts.
    """
    defaults = frame or FrameOptions()
    frame_options = {
        key: replace(option, default=getattr(defaults, key)) for key, option in options_of(FrameOptions).items()
    }

    def register(blocks: BlockBuilder) -> BlockBuilder:
        def build(topology: Topology, **options: Any) -> nn.Module:
            chosen = replace(defaults, **{key: options.pop(key) for key in frame_options if key in options})
            block = blocks(topology, drop_path_rates(topology, chosen.drop_path), **options)
            return PlannedUNet(
                topology,
                build_stem(topology, block),
                encoder(topology, block, conv_blocks=chosen.conv_blocks),
                decoder_convs=chosen.decoder_convs,
                checkpoint_blocks=chosen.checkpoint_blocks,
            )

        _add(name, blocks, build, {**options_of(blocks), **frame_options}, facts)
        return blocks

    return register


def _add(
    name: str, described: Callable[..., Any], builder: Builder, options: Mapping[str, Option], facts: dict[str, Any]
) -> None:
    module, other = described.__module__ or "__main__", NETWORKS.get(name)  # None: defined by code in a string
    ours = module.startswith(f"{__package__.rpartition('.')[0]}.")  # wins over a package that registered first
    if other is not None and not ours and other.source != module:
        raise ConfigError(f"network {name!r} is registered by {other.source} already; {module} needs another name")
    summary = (described.__doc__ or "").partition("\n")[0]
    NETWORKS[name] = NetworkFacts(builder, summary, options, module, **facts)


def drop_path_rates(topology: Topology, largest: float) -> Rate:
    """Stochastic-depth rates: 0 at the first block, rising evenly to ``largest`` at the last."""
    if not 0 <= largest < 1:
        raise ConfigError(f"drop_path must lie in [0, 1), got {largest}.")
    places = topology.block_places
    rates = dict(zip(places, rising_rates(largest, len(places)), strict=True))
    return lambda stage, index: rates[stage, index]
