"""What `medmamba find-best` chose on cross-validation, stored as JSON in the run and applied by every prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medmamba.models.cleaning import CleaningStep
from medmamba.models.output_channels import DEFAULT_THRESHOLD
from medmamba.plans.json_record import Record, canonical_json

PREDICTION_SETUP = "best.json"


class Limits(Record):
    """Limits of quality control beyond which a person should look at a mask."""

    kind: ClassVar[str] = "limits of quality control"

    max_entropy: float = Field(gt=0)
    """Mean entropy of the foreground, as a fraction of the largest possible."""
    min_agreement: float = Field(ge=0, le=1)
    """Dice of the least agreeing fold with the mean of all."""
    cases: int | None = Field(ge=1)
    """Cross-validated cases of usual Dice that they were measured on; None: fixed numbers."""


class PredictionSetup(Record):
    """Configurations that predict together, thresholds, cleaning steps, temperature, and limits of quality control."""

    kind: ClassVar[str] = "recipe of find-best"

    schema_version: Literal[1] = 1
    plan_sha256: str
    configurations: list[str] = Field(min_length=1)
    folds: dict[str, list[str]]
    dice: dict[str, float]
    """Mean cross-validated Dice of every candidate, configurations joined by "+"."""
    cases: int
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    """Of regions: the probability above which a voxel belongs to them; one half for those that are not named."""
    cleaning: list[CleaningStep]
    temperature: float = Field(default=1.0, gt=0)
    """Logits of labels are divided by it before they become probabilities; of one configuration, masks do not depend
    on it."""
    limits: Limits | None = None
    """None: too few cases to measure them."""
    mirror: bool | None = None
    """Whether the cross-validation averaged over mirrorings; None: written by a version that did not record it."""

    def to_json(self) -> str:
        """As for every record, but without fields that say nothing, so that earlier files keep their hash."""
        unknown = {"mirror"} if self.mirror is None else None
        written = self.model_dump(mode="json", exclude=unknown)
        return canonical_json(written | {"cleaning": [step.as_json() for step in self.cleaning]}) + "\n"

    def thresholds_of(self, regions: Sequence[str]) -> list[float]:
        """One probability for each region."""
        return [self.thresholds.get(name, DEFAULT_THRESHOLD) for name in regions]


def read_prediction_setup(run: Path) -> PredictionSetup | None:
    """The recipe of a run, or None when find-best has not been run."""
    path = run / PREDICTION_SETUP
    return PredictionSetup.read(path) if path.is_file() else None
