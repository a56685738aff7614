"""Shipped in bundles: networks of other packages, whose copied modules register themselves when they are imported."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TypeVar

from medmamba.errors import unknown_name

MODULES: tuple[str, ...] = ()
"""The copied modules that register networks; ``medmamba export`` writes their names here."""

T = TypeVar("T")


def find_network(name: str, table: Mapping[str, T]) -> T:
    """What a table, filled by registration, has under the name of a network; raises ConfigError for an unknown one."""
    if name not in table:
        load_network_plugins()
    if name not in table:
        raise unknown_name("network", name, list(table))
    return table[name]


@cache
def load_network_plugins() -> Mapping[str, str]:
    """Imports the copied modules, once in a process; none of them is left out."""
    for module in MODULES:
        import_module(module)
    return {}
