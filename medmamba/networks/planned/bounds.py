"""Bounds of a family's options, written in the annotation of the option that they hold for.

    def my_blocks(topology: Topology, rate: Rate, *, state_size: Count = 16, expand: WidthRatio = 1.0): ...

``build_network`` checks every option of a network against its bounds before the network's own code sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints

from medmamba.errors import ConfigError
from medmamba.networks.planned.unet import Topology


class Bound(Protocol):
    """What values of an option must satisfy."""

    def check(self, option: str, value: Any, topology: Topology) -> None:
        """Raises ConfigError, with the nearest valid value, for a value (never None) that cannot be built."""


@dataclass(frozen=True)
class AtLeast:
    """A number of at least ``lowest``."""

    lowest: float

    def check(self, option: str, value: Any, topology: Topology) -> None:
        if value < self.lowest:
            raise ConfigError(f"{option} must be at least {self.lowest}, got {value}.")


@dataclass(frozen=True)
class Odd:
    """An odd number, as edges of centred kernels are."""

    def check(self, option: str, value: Any, topology: Topology) -> None:
        if value % 2 == 0:
            raise ConfigError(f"{option} must be odd, got {value}; use {value + 1}.")


@dataclass(frozen=True)
class LeavesAChannel:
    """A factor of a stage's width that gives at least one channel at every stage with blocks."""

    def check(self, option: str, value: Any, topology: Topology) -> None:
        narrowest = min(topology.features_per_stage[0 if topology.stem == "patch" else 1 :])
        if int(value * narrowest) < 1:
            raise ConfigError(f"{option} {value} leaves no channel of {narrowest}; use at least {1 / narrowest:.3g}.")


# Annotations of options by what they mean.
Count = Annotated[int, AtLeast(1)]
CountOrZero = Annotated[int, AtLeast(0)]
Edge = Annotated[int | None, AtLeast(1)]
OddEdge = Annotated[int | None, AtLeast(1), Odd()]
NotNegative = Annotated[float, AtLeast(0)]
WidthRatio = Annotated[float, LeavesAChannel()]


@dataclass(frozen=True)
class Option:
    """An option of a network: the value it has unless one is given, and what others must satisfy."""

    default: Any
    bounds: tuple[Bound, ...] = ()

    def check(self, name: str, value: Any, topology: Topology) -> None:
        """Raises ConfigError for a value out of bounds; None is never checked."""
        for bound in self.bounds if value is not None else ():
            bound.check(name, value, topology)


def options_of(builder: Callable[..., Any]) -> Mapping[str, Option]:
    """The keyword-only parameters of a function, with the bounds in their annotations."""
    hints = get_type_hints(builder, include_extras=True)
    keywords = (p for p in signature(builder).parameters.values() if p.kind is Parameter.KEYWORD_ONLY)
    return {p.name: Option(p.default, _bounds(hints.get(p.name))) for p in keywords}


def _bounds(annotation: Any) -> tuple[Bound, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
