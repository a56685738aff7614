"""Scores of the expectations of a prediction: expected against true Dice, ranges, and what to look at first."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat

from medmamba.disk.own_files import file_sha256
from medmamba.evaluation.report import Evaluation

BINS = 5
"""Groups of equal size by expected Dice, of a reliability table."""
MOST_POINTS, MOST_PAIRS = 50, 500
LEAST_PAIRS = 3
"""Fewer masks have no correlation."""

Vector = NDArray[np.float64]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ExpectedMask:
    """What a report expects of one mask, and its true Dice."""

    case: str
    structure: str
    dice: float
    expected: float
    low: float
    high: float
    level: float
    entropy: float | None
    agreement: float | None
    views: float | None = None


@dataclass(frozen=True)
class ExpectationScores:
    """Scores of the expectations of some masks.

    Attributes:
        masks: how many.
        spearman, pearson: correlation of expected and true Dice; nan where one of them is constant.
        mean_error: mean absolute difference of both.
        coverage, level: fraction of the ranges that hold the true Dice, and what they promise.
        mean_width: of the ranges.
        risk_area: by signal, the area under the risk-coverage curve: the mean over all n of the mean of 1 - Dice of the
            n masks that the signal trusts most. "random" and "oracle" are its ends.
        risk_curve: by signal, at most :data:`MOST_POINTS` points of that curve, coverage and risk.
        reliability: groups of masks by expected Dice: number, mean expected, mean true Dice.
        pairs: expected and true Dice of at most :data:`MOST_PAIRS` masks, for a plot.
    """

    masks: int
    spearman: float
    pearson: float
    mean_error: float
    coverage: float
    level: float
    mean_width: float
    risk_area: Mapping[str, float]
    risk_curve: Mapping[str, Sequence[tuple[float, float]]]
    reliability: Sequence[tuple[int, float, float]]
    pairs: Sequence[tuple[float, float]] = ()

    def as_dict(self) -> dict[str, Any]:
        """For strict JSON: None where a score is not defined."""
        numbers = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }
        del numbers["pairs"]  # of every mask in report.json and evaluation.json
        return {**numbers, "reliability": [list(group) for group in self.reliability]}

    def rows(self) -> list[list[str]]:
        """Name and value of each score, for people."""
        areas = [
            [f"area under risk-coverage, by {name}", f"{area:.4f}"]
            for name, area in sorted(self.risk_area.items(), key=lambda pair: pair[1])
        ]
        return [
            ["masks", str(self.masks)],
            ["Spearman, expected and true Dice", _text(self.spearman)],
            ["Pearson", _text(self.pearson)],
            ["mean absolute error", f"{self.mean_error:.4f}"],
            [f"ranges of {self.level:.0%} that hold the true Dice", f"{self.coverage:.1%}"],
            ["mean width of a range", f"{self.mean_width:.4f}"],
            *areas,
        ]


class _Structure(BaseModel):
    """What a report expects of one structure of a case."""

    dice: Fraction
    low: Fraction
    high: Fraction
    level: Fraction
    views: Fraction | None = None


class _Case(BaseModel):
    """What of a case's record its expectations are scored with."""

    expected: dict[str, _Structure] = {}
    entropy: FiniteFloat | None = None
    fold_agreement: FiniteFloat | None = None
    mask_sha256: list[str] = []


class ExpectingReport(BaseModel):
    """A prediction's report.json, as far as it expects something of its masks."""

    cases: dict[str, _Case] = {}

    def changed(self, masks: Mapping[str, Path]) -> list[str]:
        """Cases whose mask is not that of the report any more, so that nothing is known about it."""
        known = {case: record.mask_sha256 for case, record in self.cases.items() if record.mask_sha256}
        return [case for case, path in masks.items() if case in known and file_sha256(path) not in known[case]]

    def masks(self, evaluation: Evaluation, without: Collection[str] = ()) -> list[ExpectedMask]:
        """The masks whose true Dice is defined and of which the report expects something."""
        found = []
        for case, scores in evaluation.cases.items():
            record = _Case() if case in without else self.cases.get(case, _Case())
            for structure, said in record.expected.items():
                if structure not in scores or math.isnan(dice := scores[structure].value("dice")):
                    continue
                numbers = said.dice, said.low, said.high, said.level, record.entropy, record.fold_agreement, said.views
                found.append(ExpectedMask(case, structure, dice, *numbers))
        return found


def score_expectations(masks: Sequence[ExpectedMask]) -> ExpectationScores:
    """The scores of at least one mask."""
    dice, expected = (np.array([getattr(mask, name) for mask in masks]) for name in ("dice", "expected"))
    low, high = (np.array([getattr(mask, name) for mask in masks]) for name in ("low", "high"))
    signals: dict[str, list[float | None]] = {
        "expected Dice": list(expected),
        "low end of the range": list(low),
        "entropy alone": [None if mask.entropy is None else -mask.entropy for mask in masks],
        "agreement of folds": [mask.agreement for mask in masks],
        "agreement of mirrored views": [mask.views for mask in masks],
        "oracle": list(dice),
    }
    signals["random"] = [0.0] * len(masks)
    risks = {
        name: risk_by_coverage(dice, np.array(values, float))
        for name, values in signals.items()
        if all(value is not None for value in values)
    }
    order = np.argsort(expected, kind="stable")
    groups = [part for part in np.array_split(order, min(BINS, len(masks))) if len(part)]
    return ExpectationScores(
        masks=len(masks),
        spearman=correlation(_ranks(expected), _ranks(dice)),
        pearson=correlation(expected, dice),
        mean_error=float(np.abs(expected - dice).mean()),
        coverage=float(((low <= dice) & (dice <= high)).mean()),
        level=masks[0].level,
        mean_width=float((high - low).mean()),
        risk_area={name: float(risk.mean()) for name, risk in risks.items()},
        risk_curve={name: _points(risk) for name, risk in risks.items()},
        reliability=[(len(part), float(expected[part].mean()), float(dice[part].mean())) for part in groups],
        pairs=[(float(expected[n]), float(dice[n])) for n in order[:: math.ceil(len(order) / MOST_PAIRS)]],
    )


def risk_by_coverage(dice: Vector, trust: Vector) -> Vector:
    """Mean of 1 - Dice of the 1, 2, ... masks with the largest ``trust``; equally trusted ones are mixed."""
    values, place = np.unique(-trust, return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    means = np.bincount(place, 1 - dice, len(values)) / counts
    risk = means[np.sort(place)]  # of equally trusted masks each counts as their mean
    found: Vector = np.cumsum(risk) / np.arange(1, len(risk) + 1)
    return found


def _points(risk: Vector) -> list[tuple[float, float]]:
    """Coverage and risk at places of the curve that are evenly spread, its ends among them."""
    places = np.unique(np.linspace(0, len(risk) - 1, min(len(risk), MOST_POINTS)).round().astype(int))
    return [(round((n + 1) / len(risk), 4), round(float(risk[n]), 5)) for n in places]


def correlation(first: Vector, second: Vector) -> float:
    """Pearson's correlation; nan of fewer than three pairs, or where one is constant."""
    if len(first) < LEAST_PAIRS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Vector) -> Vector:
    """Ranks from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Vector = (ends - (counts - 1) / 2)[place]
    return ranks


def _text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
