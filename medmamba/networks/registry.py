"""The registry of planned networks: a name and a plan's numbers in, a module out.

A family is one function from a :class:`~medmamba.networks.unet.Topology` and its own options to a module, registered by
one decorator. Everything registered is tested by being registered (``tests/networks/test_registry.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import nn

from medmamba.errors import ConfigError, unknown_name
from medmamba.networks.unet import Topology

Builder = Callable[..., nn.Module]

_NETWORKS: dict[str, Builder] = {}


def network(name: str) -> Callable[[Builder], Builder]:
    """Register a builder ``(topology, **options) -> nn.Module`` under ``name``."""

    def register(builder: Builder) -> Builder:
        _NETWORKS[name] = builder
        return builder

    return register


@dataclass(frozen=True)
class NetworkFacts:
    """What a planner or a command wants to know about a family without building it.

    Attributes:
        summary: the first line of its description.
        options: names of its own options.
        has_scan: whether ``use_scan=False`` means something.
        full_resolution_only: whether strides[0] must be 1 on every axis.
    """

    summary: str
    options: tuple[str, ...]
    has_scan: bool
    full_resolution_only: bool


def network_facts(name: str) -> NetworkFacts:
    """Facts about a registered network. Raises ConfigError for an unknown name."""
    builder = _builder(name)
    options = _options(builder)
    return NetworkFacts(
        summary=(builder.__doc__ or "").partition("\n")[0],
        options=tuple(o for o in options if o != "use_scan"),
        has_scan="use_scan" in options,
        full_resolution_only=name in ("plain_unet", "residual_unet"),
    )


def network_options(name: str) -> tuple[str, ...]:
    """Names of the options that ``build_network(name, ...)`` takes beside a plan's numbers, ``use_scan`` among them."""
    return tuple(_options(_builder(name)))


def available_networks() -> tuple[str, ...]:
    """Names that :func:`build_network` knows, sorted."""
    _load()
    return tuple(sorted(_NETWORKS))


def build_network(
    name: str,
    *,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    strides: Sequence[Sequence[int]],
    features_per_stage: Sequence[int],
    blocks_per_stage: Sequence[int] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
    stem: str = "conv",
    deep_supervision: bool = False,
    use_scan: bool = True,
    **options: Any,
) -> nn.Module:
    """The network ``name`` with a plan's numbers; returns logits (see :class:`PlannedUNet`).

    Args:
        strides: per stage, one stride per axis; the first is the stem's.
        features_per_stage: channels per stage.
        blocks_per_stage: blocks per stage; 2 in the stem and 1 elsewhere if None.
        kernels: convolution edges per stage and axis; 3 if None.
        stem: "conv" or "patch".
        deep_supervision: return logits of every decoder resolution in training.
        use_scan: False builds the same network without its scans.
        options: the family's own (for ``vm_unet``: state_size, routes, expand, drop_path, ...).

    Raises ConfigError for unknown names and options, and for numbers that do not fit together.
    """
    builder = _builder(name)
    known = _options(builder)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of network {name!r}", option, [o for o in known if o != "use_scan"])
    topology = Topology(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=tuple(tuple(int(s) for s in stride) for stride in strides),
        features_per_stage=tuple(int(f) for f in features_per_stage),
        blocks_per_stage=tuple(blocks_per_stage) if blocks_per_stage is not None else (2,) + (1,) * (len(strides) - 1),
        kernels=tuple(tuple(int(k) for k in kernel) for kernel in kernels or ()),
        stem=stem,
        deep_supervision=deep_supervision,
    )
    if "use_scan" in known:
        options["use_scan"] = use_scan
    elif not use_scan:
        raise ConfigError(f"Network {name!r} has no scan to leave out; train it as it is.")
    return builder(topology, **options)


def _builder(name: str) -> Builder:
    _load()
    if name not in _NETWORKS:
        raise unknown_name("network", name, available_networks())
    return _NETWORKS[name]


def _options(builder: Builder) -> list[str]:
    return [p.name for p in signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _load() -> None:
    """Import the files that register networks, on first use."""
    import medmamba.networks.baselines
    import medmamba.networks.families  # noqa: F401
