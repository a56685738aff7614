"""What `medmamba find-best` chose on cross-validation, stored as JSON in the run and applied by every prediction."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from medmamba.errors import ConfigError
from medmamba.plans.record import Record

RECIPE = "best.json"


class Cleaning(Record):
    """One step on the components of one label (by name)."""

    kind: ClassVar[str] = "cleaning step"

    label: str
    action: Literal["largest_component", "remove_small"]
    smallest_voxels_mm3: float = Field(default=0.0, ge=0)
    """remove_small: components below this volume (voxels, for images without millimetres) become background."""
    gain: float = 0.0
    """Mean Dice gained in cross-validation."""


class Recipe(Record):
    """Configurations that answer together, cleaning steps, and the temperature of their probabilities."""

    kind: ClassVar[str] = "recipe of find-best"

    schema_version: Literal[1] = 1
    plan_sha256: str
    configurations: list[str] = Field(min_length=1)
    folds: dict[str, list[str]]
    dice: dict[str, float]
    """Mean cross-validated Dice of every candidate, configurations joined by "+"."""
    cases: int
    cleaning: list[Cleaning]
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it before they become probabilities; masks do not depend on it."""


def read_recipe(run: Path) -> Recipe | None:
    """The recipe of a run, or None when find-best has not been run."""
    path = run / RECIPE
    if not path.is_file():
        return None
    try:
        return Recipe.from_json(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
