"""What `medmamba find-best` learned about the quality of masks without truth; stored as JSON beside best.json.

A rule turns features of a case and structure (medmamba/inference/expected.py), each larger where a mask is worse and
with a weight of at least 0, into an expected number and its range. Hashes bind it to plan, weights and best.json.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from medmamba.errors import ConfigError, counted
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.plans.json_record import Record

EXPECTATIONS = "expectations.json"

FEATURES = ("soft", "entropy", "views", "volume", "extent", "pieces", "intensities", "texture", "field")
"""Of a case and structure; "views" only where images were mirrored."""

Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Spread = Annotated[float, Field(gt=0, le=1e6)]
Chance = Annotated[float, Field(ge=0, le=1)]
ImageMeasure = Annotated[str, Field(pattern=r"^(intensities|texture|field)\.\d+(\.\w+)?$")]
Usual = tuple[Number, Spread]
"""Median of the cross-validated cases, and how far these spread around it."""


class QualityRule(Record):
    """One number as ``intercept`` plus weighted features, on a scale where larger is worse, with its errors.

    An error of cross-validation (``scores``, ascending) is divided by ``spread[0] + spread[1] * max(0, value -
    spread[2])``; ``masses`` is the weight of each: a patient counts once, however many rows it has, among one more
    patient than there are.
    """

    kind: ClassVar[str] = "rule of expected quality"

    intercept: Number
    weights: dict[str, Weight]
    spread: tuple[Spread, Weight, Number]
    scores: list[Number]
    masses: list[Annotated[float, Field(gt=0, lt=1)]]

    @model_validator(mode="after")
    def _one_mass_per_score(self) -> Self:
        if len(self.scores) != len(self.masses) or sum(self.masses) >= 1 or sorted(self.scores) != self.scores:
            raise ValueError("scores must be ascending, each with its mass, and the masses must sum to less than 1")
        return self


class StructureExpectations(Record):
    """The rules of one structure, and what is usual for it: shape of the truth, features of unharmed cases."""

    kind: ClassVar[str] = "expectations of a structure"

    patients: int = Field(ge=1)
    """Of which cross-validated cases were learned from."""
    always_present: bool
    """Whether all of these cases have it, so that an empty mask must be wrong."""
    shape: dict[str, Usual]
    features: dict[str, Number]
    """The median of every feature over unharmed cases, in the words' own unit."""
    dice: QualityRule
    hd95: QualityRule | None = None
    components: QualityRule | None = None
    volume: QualityRule | None = None
    """Logarithm of the true volume over that of the mask, from no feature."""

    @model_validator(mode="after")
    def _everything_known(self) -> Self:
        used = {name for rule in (self.dice, self.hd95, self.components) if rule is not None for name in rule.weights}
        known = set(self.features)
        if not used <= known or not set(FEATURES) - {"views"} <= known <= set(FEATURES):
            raise ValueError(
                f"what is usual must be there for every weight, and for the features {', '.join(FEATURES)}"
            )
        if not {"volume", "extent", "pieces"} <= set(self.shape):
            raise ValueError("what is usual must be there for volume, extent and pieces of the truth")
        return self


class Expectations(Record):
    """Rules by structure (label or region), and what they hold for."""

    kind: ClassVar[str] = "file of expectations"

    schema_version: Literal[1] = 1
    plan_sha256: str
    recipe_sha256: str
    weights_sha256: dict[str, dict[str, str]]
    """By configuration and fold, of the folds that predicted the cases."""
    mirror: bool
    step: float
    unit: Literal["mm", "voxels"]
    cases: int = Field(ge=0)
    copies: int = Field(ge=0)
    """Harmed copies of each case that were predicted as well."""
    image: dict[ImageMeasure, Usual]
    voxel_errors: list[tuple[Chance, Chance]] = Field(default_factory=list)
    """Doubt of voxels (inference/uncertainty.py) and how often those of about this doubt were wrong, both ascending."""
    structures: dict[str, StructureExpectations]
    not_learned: dict[str, str]
    """Structures without a rule, and why."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.mirror and any("views" in known.features for known in self.structures.values()):
            raise ValueError("the feature views needs mirroring")
        for which in range(2):
            values = [pair[which] for pair in self.voxel_errors]
            if sorted(values) != values:
                raise ValueError("voxel_errors must ascend, in doubt and in chance of error")
        return self

    def lines(self) -> Iterator[str]:
        """For people: of which structures something was learned, from how much, and of which not."""
        for name, known in self.structures.items():
            drawn = ", ".join(known.dice.weights) or "nothing: its mean"
            copies = f", {self.copies} harmed copies of each case" if self.copies else ""
            yield f"expected quality of {name}: from {counted(known.patients, 'patient')}{copies}, by {drawn}"
        for name, why in self.not_learned.items():
            yield f"expected quality of {name}: {why}"

    def refusal(
        self, recipe: PredictionSetup, weights: Mapping[str, Mapping[str, str]], *, mirror: bool, step: float
    ) -> str:
        """Why the rules do not hold for a prediction with these weights and settings; "" where they do."""
        if recipe.hash() != self.recipe_sha256:
            return "best.json was made anew since"
        for configuration, folds in weights.items():
            known = self.weights_sha256.get(configuration, {})
            for fold, sha256 in folds.items():
                if known.get(fold) != sha256:
                    what = "was trained since" if fold in known else "took no part"
                    return f"{fold} of {configuration} {what}"
        if mirror != self.mirror:
            return f"find-best ran {('without', 'with')[self.mirror]} mirroring"
        if step != self.step:
            return "find-best ran with another overlap of patches"
        return ""


def read_expectations(run: Path, plan_sha256: str) -> Expectations | None:
    """The expectations of a run, or None when none were learned. Raises ConfigError for those of another plan."""
    path = run / EXPECTATIONS
    if not path.is_file():
        return None
    found = Expectations.read(path)
    if found.plan_sha256 != plan_sha256:
        raise ConfigError(f"{path}: belongs to another plan. Run `medmamba find-best {run}` again, or remove it.")
    return found
