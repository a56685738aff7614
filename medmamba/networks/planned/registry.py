"""The table of networks that a plan can configure, and the decorators that put a network into it.

A network is one function from a :class:`~.unet.Topology` and its own options to a module, or, in the U-Net frame, to a
factory of blocks. ``medmamba.networks.build`` imports the files that register, and builds by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from torch import nn

from medmamba.errors import ConfigError
from medmamba.networks.planned.unet import BlockFactory, Encoder, PlannedUNet, Topology, build_stem

Builder = Callable[..., nn.Module]
Rate = Callable[[int, int], float]  # (stage, block) -> stochastic-depth rate
BlockBuilder = Callable[..., BlockFactory]

FRAME_OPTIONS = {"conv_blocks": 1, "decoder_convs": 1, "drop_path": 0.0, "checkpoint_blocks": False}
"""Options of every network in the U-Net frame: residual convolution blocks before the blocks of each stage,
convolutions after each skip, stochastic depth at the last block, recomputing blocks in the backward pass."""


@dataclass(frozen=True)
class NetworkFacts:
    """What a planner or a command wants to know about a family without building it.

    Attributes:
        summary: the first line of its description.
        options: its options beside a plan's numbers, with their defaults.
        full_resolution_only: strides[0] must be 1 on every axis and the stem a convolution.
        min_stages: resolutions it needs at least.
        min_feature_edge: smallest useful edge of the coarsest map, in voxels (it works on smaller ones).
        channel_multiple: every stage's width must be a multiple of this, the first one's excepted if the stem is a
            convolution.
        planar: built for 2D images only.
        published: the numbers of its own that a published function has; a plan gives it channels and classes alone.
    """

    summary: str
    options: dict[str, Any]
    full_resolution_only: bool = False
    min_stages: int = 2
    min_feature_edge: int = 4
    channel_multiple: int = 1
    planar: bool = False
    published: dict[str, Any] | None = None

    @property
    def has_scan(self) -> bool:
        """Whether ``use_scan=False`` means something."""
        return "use_scan" in self.options


NETWORKS: dict[str, tuple[Builder, NetworkFacts]] = {}


def network(name: str, **facts: Any) -> Callable[[Builder], Builder]:
    """Register a builder ``(topology, **options) -> nn.Module`` under ``name``; ``facts`` as in NetworkFacts."""

    def register(builder: Builder) -> Builder:
        NETWORKS[name] = (builder, NetworkFacts(_summary(builder), _defaults(builder), **facts))
        return builder

    return register


def unet_family(
    name: str, *, frame: dict[str, Any] | None = None, **facts: Any
) -> Callable[[BlockBuilder], BlockBuilder]:
    """Register ``(topology, rate, **options) -> block factory`` as a family in the U-Net frame.

    ``frame`` holds the family's own defaults of the frame's options.
    """

    def register(blocks: BlockBuilder) -> BlockBuilder:
        defaults = FRAME_OPTIONS | (frame or {})

        def build(topology: Topology, **options: Any) -> nn.Module:
            chosen = {key: options.pop(key, default) for key, default in defaults.items()}
            block = blocks(topology, drop_path_rates(topology, chosen["drop_path"]), **options)
            return PlannedUNet(
                topology,
                build_stem(topology, block),
                Encoder(topology, block, conv_blocks=chosen["conv_blocks"]),
                decoder_convs=chosen["decoder_convs"],
                checkpoint_blocks=chosen["checkpoint_blocks"],
            )

        NETWORKS[name] = (build, NetworkFacts(_summary(blocks), _defaults(blocks) | defaults, **facts))
        return blocks

    return register


def drop_path_rates(topology: Topology, largest: float) -> Rate:
    """Stochastic-depth rates: 0 at the first block, rising evenly to ``largest`` at the last."""
    if not 0 <= largest < 1:
        raise ConfigError(f"drop_path must lie in [0, 1), got {largest}.")
    places = topology.block_places

    def rate(stage: int, index: int) -> float:
        return largest * places.index((stage, index)) / max(len(places) - 1, 1)

    return rate


def _defaults(builder: Callable[..., Any]) -> dict[str, Any]:
    parameters = signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}


def _summary(builder: Callable[..., Any]) -> str:
    return (builder.__doc__ or "").partition("\n")[0]
