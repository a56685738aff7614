"""Shipped in bundles: the rules of expected quality, from models/expectations.json.

In a bundle this file replaces ``medmamba.models.expectations``, which needs pydantic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

Usual = Sequence[float]
"""Median of the cross-validated cases, and how far these spread around it."""


@dataclass(frozen=True)
class BundleRule:
    """One number as ``intercept`` plus weighted features, with its errors in cross-validation."""

    intercept: float
    weights: dict[str, float]
    spread: list[float]
    scores: list[float]
    masses: list[float]


@dataclass(frozen=True)
class BundleStructure:
    """The rules of one structure, and what is usual for it."""

    patients: int
    always_present: bool
    shape: dict[str, Usual]
    features: dict[str, float]
    dice: BundleRule
    hd95: BundleRule | None
    components: BundleRule | None
    volume: BundleRule | None


@dataclass(frozen=True)
class BundleExpectations:
    """Rules by structure, the usual image, and the structures without a rule, with the reason."""

    unit: str
    image: dict[str, Usual]
    structures: dict[str, BundleStructure]
    not_learned: dict[str, str]


def read_rules(numbers: Mapping[str, Any]) -> Any:
    """The :class:`BundleExpectations` in models/expectations.json; type checkers see Expectations."""
    structures = {}
    for name, known in numbers["structures"].items():
        rules = {key: known[key] for key in ("dice", "hd95", "components", "volume")}
        made = {key: None if rule is None else _of(BundleRule, rule) for key, rule in rules.items()}
        structures[name] = _of(BundleStructure, {**known, **made})
    return _of(BundleExpectations, {**numbers, "structures": structures})


def _of(form: Any, numbers: Mapping[str, Any]) -> Any:
    return form(**{field.name: numbers[field.name] for field in fields(form)})


Expectations, StructureExpectations, QualityRule = BundleExpectations, BundleStructure, BundleRule
"""The names by which the other files of a bundle import what ``medmamba.models.expectations`` defines."""
