"""Shipped in bundles: the numbers of the plan that prediction needs, from configs/inference.json.

In a bundle this file replaces ``medmamba.plans.schema``, which needs pydantic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
class BundlePlan:
    """A plan with one configuration: channels, labels (name to value), what the outputs mean, and the network's grid.

    ``spacing_mm`` is that of each axis of the plan, None for images without millimetres. ``nonfinite`` is "zero" where
    non-finite voxels are set to 0; ``conventions`` and ``reorient`` are those of the plan.
    """

    channel_names: list[str]
    labels: dict[str, int]
    axis_order: list[int]
    normalization: list[BundleNormalization]
    regions: dict[str, list[str]] | None
    region_order: list[str] | None
    ignore_label: int | None
    left_right_pairs: list[list[str]]
    nonfinite: str
    spacing_mm: list[float] | None
    patch_size: list[int]
    conventions: str = "medmamba"
    reorient: bool = True


def read_numbers(numbers: Mapping[str, Any]) -> Any:
    """The :class:`BundlePlan` in the entry ``plan`` of configs/inference.json; type checkers see a Plan."""
    normalization = [BundleNormalization(**entry) for entry in numbers["normalization"]]
    return BundlePlan(**{**numbers, "normalization": normalization})


Plan, Configuration, Normalization = BundlePlan, BundlePlan, BundleNormalization
"""The names by which the other files of a bundle import what ``medmamba.plans.schema`` defines."""
