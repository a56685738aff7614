"""Comparisons of golden files that hold operators and index tables rather than modules."""

from __future__ import annotations

from medmamba.networks.golden import Golden

Found = tuple[str, float, float]  # kind, error, allowed


def operator_checks(golden: Golden) -> list[Found] | None:
    """The comparisons of a file without a model; None if it has one."""
    if golden.model:
        return None
    return None
