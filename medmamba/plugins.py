"""Networks of other packages: what installed packages declare in the entry point group ``medmamba.networks``.

    [project.entry-points."medmamba.networks"]
    gated_unet = "gated_unet.network"

The entry is named as its network and points to the module that registers it (docs/how-to/add-a-network.md). Planner
and networks load these modules the first time that one of them is asked for a name which is not medmamba's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from medmamba.errors import ConfigError, unknown_name

GROUP = "medmamba.networks"

T = TypeVar("T")


def find_network(name: str, table: Mapping[str, T]) -> T:
    """What a table, filled by registration, has under the name of a network; other packages register when needed.

    Raises ConfigError for a network whose package cannot be imported, and, with the nearest spelling, for a name that
    nobody registers.
    """
    if name not in table and name in (broken := load_network_plugins()):
        raise ConfigError(broken[name])
    if name not in table:
        raise unknown_name("network", name, list(table))
    return table[name]


@cache
def load_network_plugins() -> Mapping[str, str]:
    """Imports the modules of the group, once in a process; those that fail come back as name -> what to do."""
    broken = {}
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # whatever another package raises while it is imported
            broken[entry.name] = _failure(entry, error)
    return broken


def _failure(entry: EntryPoint, error: Exception) -> str:
    package = entry.dist.name if entry.dist is not None else entry.module
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"Network {entry.name!r} of the package {package} cannot be imported ({reason}). Update the package "
        f"(`pip install --upgrade {package}`), or remove it (`pip uninstall {package}`)."
    )
