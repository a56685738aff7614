"""Shipped in bundles: the numbers of the plan that prediction needs, from configs/inference.json.

In a bundle this file replaces ``medmamba.plans.schema``, which needs pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BundleNormalization:
    """How one channel's intensities are normalised."""

    scheme: str
    use_mask: bool = False
    mean: float | None = None
    std: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None


@dataclass(frozen=True)
class BundleConfiguration:
    """The grid that the network works on: spacing per plan axis in mm, None for images without millimetres."""

    spacing_mm: list[float] | None
    patch_size: list[int]


@dataclass(frozen=True)
class BundlePlan:
    """Channels, labels (name to value), axis order, intensity normalisation, and what the outputs mean.

    ``nonfinite`` is "zero" where voxels that are no numbers are set to 0.
    """

    channel_names: list[str]
    labels: dict[str, int]
    axis_order: list[int]
    normalization: list[BundleNormalization]
    regions: dict[str, list[str]] | None = None
    region_order: list[str] | None = None
    ignore_label: int | None = None
    left_right_pairs: list[list[str]] = field(default_factory=list)
    nonfinite: str = "error"


def read_numbers(numbers: Mapping[str, Any]) -> tuple[BundlePlan, BundleConfiguration]:
    """Plan and configuration from the entry ``plan`` of configs/inference.json."""
    left = dict(numbers)
    configuration = BundleConfiguration(left.pop("spacing_mm"), left.pop("patch_size"))
    normalization = [BundleNormalization(**entry) for entry in left.pop("normalization")]
    return BundlePlan(normalization=normalization, **left), configuration


Plan, Configuration, Normalization = BundlePlan, BundleConfiguration, BundleNormalization
"""The names by which the other files of a bundle import what ``medmamba.plans.schema`` defines."""
