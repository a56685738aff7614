"""Shipped in bundles: the numbers of the plan that prediction needs, from configs/inference.json.

In a bundle this file replaces ``medmamba.plans.schema``, which needs pydantic, and has the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Normalization:
    """How one channel's intensities are normalised."""

    scheme: str
    use_mask: bool = False
    mean: float | None = None
    std: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None


@dataclass(frozen=True)
class Configuration:
    """The grid that the network works on: spacing per plan axis in mm, None for images without millimetres."""

    spacing_mm: list[float] | None
    patch_size: list[int]


@dataclass(frozen=True)
class Plan:
    """Channels, labels (name to value), axis order, intensity normalisation, and what the outputs mean."""

    channel_names: list[str]
    labels: dict[str, int]
    axis_order: list[int]
    normalization: list[Normalization]
    regions: dict[str, list[str]] | None = None
    region_order: list[str] | None = None
    ignore_label: int | None = None
    left_right_pairs: list[list[str]] = field(default_factory=list)


def read_numbers(numbers: Mapping[str, Any]) -> tuple[Plan, Configuration]:
    """Plan and configuration from the entry ``plan`` of configs/inference.json."""
    left = dict(numbers)
    configuration = Configuration(left.pop("spacing_mm"), left.pop("patch_size"))
    normalization = [Normalization(**entry) for entry in left.pop("normalization")]
    return Plan(normalization=normalization, **left), configuration
