"""Bounds of a family's options, written in the annotation of the option that they hold for.

    def my_blocks(topology: Topology, rate: Rate, *, state_size: Count = 16, expand: WidthRatio = 1.0): ...

``build_network`` checks every option of a network against its bounds before the network's own code sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from medmamba.errors import ConfigError
from medmamba.networks.planned.unet import Topology

Bound = Callable[[str, Any, Topology], None]
"""(option, value, topology): raises ConfigError, with the nearest valid value, for one that cannot be built."""


HIGHEST = 1024
"""Value of any option of a network."""


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
