"""Networks of other packages: what installed packages declare in the entry point group ``medmamba.networks``.

    [project.entry-points."medmamba.networks"]
    gated_unet = "gated_unet.network"

The entry is named as its network and points to the module that registers it (docs/how-to/add-a-network.md). Planner
and networks load these modules the first time that one of them is asked for a name which is not medmamba's own.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from medmamba.errors import ConfigError, Terminated, first_line, unknown_name

GROUP = "medmamba.networks"
MODULES: tuple[str, ...] = ()
"""In a bundle, the copied modules of its networks; `medmamba export` writes their names here."""

T = TypeVar("T")


def find_network(name: str, table: Mapping[str, T]) -> T:
    """What a table, filled by registration, has under the name of a network; other packages register when needed.

    Raises ConfigError for a network whose package cannot be imported or does not register it, and, with the nearest
    spelling, for a name that no package declares.
    """
    if name not in table and name in (broken := load_network_plugins()):
        raise ConfigError(broken[name])
    if name not in table:
        for entry in entry_points(group=GROUP, name=name):
            raise ConfigError(
                f"The package {_package(entry)} declares the network {name!r}, but its module {entry.module} does not "
                f"register it completely: @network or @unet_family for the network, register_family for the planner."
            )
        raise unknown_name("network", name, list(table))
    return table[name]


@cache
def load_network_plugins() -> Mapping[str, str]:
    """Imports the modules of the group, once in a process; those that fail come back as name -> what to do."""
    for module in MODULES:
        import_module(module)
    broken = {}
    for entry in () if MODULES else entry_points(group=GROUP):
        try:
            entry.load()
        except BaseException as error:  # any exception of an import, also sys.exit()
            if isinstance(error, KeyboardInterrupt | Terminated):
                raise
            package = _package(entry)
            broken[entry.name] = (
                f"Network {entry.name!r} of the package {package} cannot be imported ({first_line(error)}). Update the "
                f"package (`pip install --upgrade {package}`), or remove it (`pip uninstall {package}`)."
            )
    return broken


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
