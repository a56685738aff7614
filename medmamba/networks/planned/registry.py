"""The table of networks that a plan can configure, and the decorators that put a network into it.

A network is one function from a :class:`~.unet.Topology` and its own options to a module (``@network``), or, in the
U-Net frame, to a factory of blocks (``@unet_family``). ``medmamba.networks.build`` imports the files that register,
and builds by name. It checks every option before the network's own code sees it, against the bounds in the option's
annotation::

    def my_blocks(topology: Topology, rate: Rate, *, state_size: Count = 16, expand: WidthRatio = 1.0): ...
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from torch import nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.residual import rising_rates
from medmamba.networks.planned.unet import BlockFactory, Encoder, PlannedUNet, Topology, build_stem

Builder = Callable[..., nn.Module]
Rate = Callable[[int, int], float]  # (stage, block) -> stochastic-depth rate
BlockBuilder = Callable[..., BlockFactory]

Bound = Callable[[str, Any, Topology], None]
"""(option, value, topology): raises ConfigError, with the nearest valid value, for one that cannot be built."""


HIGHEST = 1024
"""Value of an option of a network."""


def at_least(lowest: float) -> Bound:
    """A number from ``lowest`` to :data:`HIGHEST`."""

    def check(option: str, value: Any, topology: Topology) -> None:
        if value < lowest:
            raise ConfigError(f"{option} must be at least {lowest}, got {value}.")
        if value > HIGHEST:
            raise ConfigError(f"{option} must be at most {HIGHEST}, got {value}.")

    return check


def odd(option: str, value: Any, topology: Topology) -> None:
    """An odd number, as edges of centred kernels are."""
    if value % 2 == 0:
        raise ConfigError(f"{option} must be odd, got {value}; use {value + 1}.")


def leaves_a_channel(option: str, value: Any, topology: Topology) -> None:
    """A factor of a stage's width that gives at least one channel at every stage with blocks."""
    at_least(0)(option, value, topology)
    narrowest = min(topology.features_per_stage[0 if topology.stem == "patch" else 1 :])
    if int(value * narrowest) < 1:
        raise ConfigError(f"{option} {value} leaves no channel of {narrowest}; use at least {1 / narrowest:.3g}.")


# Annotations of options by what they mean.
Count = Annotated[int, at_least(1)]
CountOrZero = Annotated[int, at_least(0)]
Edge = Annotated[int | None, at_least(1)]
OddEdge = Annotated[int | None, at_least(1), odd]
NotNegative = Annotated[float, at_least(0)]
WidthRatio = Annotated[float, leaves_a_channel]


@dataclass(frozen=True)
class Option:
    """An option of a network: the value it has unless one is given, and what others must satisfy."""

    default: Any
    bounds: tuple[Bound, ...] = ()

    def check(self, name: str, value: Any, topology: Topology) -> None:
        """Raises ConfigError for a value out of bounds; None is never checked."""
        for bound in self.bounds if value is not None else ():
            bound(name, value, topology)


def options_of(builder: Callable[..., Any]) -> Mapping[str, Option]:
    """The keyword-only parameters of a function, with the bounds in their annotations."""
    hints = get_type_hints(builder, include_extras=True)
    found = {}
    for name, parameter in signature(builder).parameters.items():
        if parameter.kind is Parameter.KEYWORD_ONLY:
            hint = hints.get(name)
            found[name] = Option(parameter.default, get_args(hint)[1:] if get_origin(hint) is Annotated else ())
    return found


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """Options of every network in the U-Net frame."""

    conv_blocks: CountOrZero = 1  # residual convolution blocks before the blocks of each stage
    decoder_convs: Count = 1  # convolutions after each skip
    drop_path: float = 0.0  # stochastic-depth rate of the last block; 0 at the first
    checkpoint_blocks: bool = False  # recompute blocks in the backward pass instead of keeping their activations


@dataclass(frozen=True)
class NetworkFacts:
    """A registered network: how it is built, and what a planner or a command asks without building it.

    ``channel_multiple`` divides every stage's width, the first one's excepted if the stem is a convolution; the last of
    ``default_blocks``, per stage where none are given, holds for all further stages; ``published`` are the fixed
    numbers of a published network, for which a plan gives channels and classes only.
    """

    builder: Builder  # (topology, **options) to the module
    summary: str  # the first line of its description
    options: Mapping[str, Option]  # beside a plan's numbers
    source: str  # the module that defines it
    full_resolution_only: bool = False  # strides[0] must be 1 on every axis and the stem a convolution
    min_stages: int = 2
    channel_multiple: int = 1
    default_blocks: tuple[int, ...] = (2, 1)
    planar: bool = False  # built for 2D images only
    retired: bool = False  # built only for models that were trained with it
    published: dict[str, Any] | None = None

    @property
    def has_scan(self) -> bool:
        """Whether ``use_scan=False`` means something."""
        return "use_scan" in self.options


NETWORKS: dict[str, NetworkFacts] = {}  # every registered network by its name


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
