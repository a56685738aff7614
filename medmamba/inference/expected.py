"""Expected quality of a mask without truth: features of a case and structure, the learned rule, and its range.

Every feature is a distance from what is good or usual, and no rule gives one a negative weight: what speaks against a
mask can only lower its expected Dice. The range of a number comes from the errors of cross-validation by conformal
prediction: of a new patient like those, it holds the truth with at least the stated chance, whatever the rule.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.inference.evidence import Measured, measured_shape
from medmamba.inference.finding import Finding
from medmamba.models.expectations import Expectations, QualityRule, StructureExpectations, Usual
from medmamba.models.output_channels import OutputChannels

LEVEL = 0.9
"""Chance with which a range holds the truth; half of the rest lies on either side."""
MARGIN = 0.01
"""Dice of 0 and 1 have finite places on the rule's scale, as if they were this far from the end."""
LEAST = 1e-3
MOST = 1000.0
"""Larger expected distances (mm) and numbers of components are not told apart: a rule extrapolates without end."""
REASONS = 3
IMAGE_GROUPS = ("intensities", "texture", "field")
LARGEST_DISTANCE = 50.0


@dataclass(frozen=True)
class ExpectedQuality:
    """What to expect of the mask of one structure.

    Attributes:
        dice, low, high: the expected Dice, and the range that holds the true one with the chance ``level``.
        hd95_mm: expected 95th percentile of the surface distance; None without millimetres.
        components: expected number of components that are missed, or have nothing in the truth.
        volume_ml: the range that holds the true volume with the chance ``level``; None without millimetres.
        views: Dice of the mirrored views with their mean; None without mirroring.
        risk: largest chance that the Dice is below the accepted one; None where none was given.
        reasons: what speaks most against the mask, the strongest first.
        note: what limits the numbers, such as a range from too few patients; "" for nothing.
    """

    dice: float
    low: float
    high: float
    level: float = LEVEL
    hd95_mm: float | None = None
    components: float | None = None
    volume_ml: tuple[float, float | None] | None = None
    views: float | None = None
    risk: float | None = None
    reasons: Sequence[str] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        volume = None if self.volume_ml is None else list(self.volume_ml)
        return {**asdict(self), "volume_ml": volume, "reasons": list(self.reasons)}

    def sentence(self) -> str:
        """For people."""
        distance = "" if self.hd95_mm is None else f", HD95 {self.hd95_mm:.1f} mm"
        return f"Dice {self.dice:.2f} ({self.low:.2f} to {self.high:.2f} with a chance of {self.level:.0%}){distance}"


def remarks_of(expected: Mapping[str, ExpectedQuality]) -> dict[str, str]:
    """One sentence for each structure, for objects that hold text."""
    return {name: f"Expected without truth: {quality.sentence()}" for name, quality in expected.items()}


def scale_of_dice(dice: float) -> float:
    """The place of a Dice on the scale of a rule, where larger is worse."""
    bad = MARGIN + (1 - 2 * MARGIN) * (1 - dice)
    return math.log(bad / (1 - bad))


def dice_of_scale(value: float) -> float:
    """The Dice at a place of that scale, from 0 to 1; of infinite ones too."""
    bad = 1 / (1 + math.exp(-min(max(value, -700.0), 700.0)))
    return min(max(1 - (bad - MARGIN) / (1 - 2 * MARGIN), 0.0), 1.0)


def features_of(
    networks: Measured, shape: Measured, image: Measured, usual: Mapping[str, Usual], usual_image: Mapping[str, Usual]
) -> Measured:
    """The features of a structure that is in the mask: larger where that is worse, and never infinite."""
    found: Measured = {}
    for name in ("soft", "views"):
        if name in networks or not networks:
            part = min(max(networks.get(name, 1.0), LEAST), 1 - LEAST)
            found[name] = math.log(part / (1 - part))
    found["entropy"] = math.log(networks.get("entropy", 100.0) + LEAST)
    for name in ("volume", "extent"):
        found[name] = math.log1p(abs(_distance(shape[name], usual[name])))
    found["pieces"] = math.log1p(max(_distance(shape["pieces"], usual["pieces"]), 0.0))
    return found | image_distances(image, usual_image)


def image_distances(image: Measured, usual: Mapping[str, Usual]) -> Measured:
    """How far intensities, texture and field of view are from training: root mean squares, of the worst channel."""
    squares: dict[tuple[str, str], list[float]] = {}
    for name, known in usual.items():
        group, part, *_ = name.split(".")
        key = (group, "" if group == "field" else part)
        squares.setdefault(key, []).append(_distance(image[name], known) ** 2 if name in image else 0.0)
    found = {group: 0.0 for group in IMAGE_GROUPS}
    for (group, _), values in squares.items():
        found[group] = max(found[group], math.log1p(math.sqrt(float(np.mean(values)))))
    return found


def _distance(value: float, usual: Usual) -> float:
    centre, spread = usual
    return min(max((value - centre) / spread, -LARGEST_DISTANCE), LARGEST_DISTANCE)


def value_of(rule: QualityRule, features: Measured) -> float:
    """The expected place on the rule's scale."""
    return rule.intercept + sum(weight * features[name] for name, weight in rule.weights.items())


def _exp(value: float) -> float:
    """e to this power, of large ones too."""
    return math.exp(min(value, 600.0))


def width_of(spread: Sequence[float], value: float) -> float:
    """By what errors at this place are divided."""
    return spread[0] + spread[1] * max(0.0, value - spread[2])


def bounds_of(rule: QualityRule, value: float, chance: float) -> tuple[float, float]:
    """The places below which, and above which, the truth lies with at most this chance each; infinite for few cases."""
    masses, width = np.array(rule.masses), width_of(rule.spread, value)
    above, below = np.cumsum(masses), np.cumsum(masses[::-1])
    needed = 1 - chance - 1e-12
    high = next((rule.scores[i] for i in np.flatnonzero(above >= needed)[:1]), math.inf)
    low = next((rule.scores[::-1][i] for i in np.flatnonzero(below >= needed)[:1]), -math.inf)
    return value + low * width, value + high * width


def chance_above(rule: QualityRule, value: float, place: float) -> tuple[float, float]:
    """Largest chances that the truth lies above a place, and that it does not."""
    scores, masses = np.array(rule.scores), np.array(rule.masses)
    unknown = 1 - float(masses.sum())  # of one more patient
    above = float(masses[value + scores * width_of(rule.spread, value) > place].sum())
    return round(above + unknown, 9), round(1 - above, 9)  # sums of masses are exact to fewer digits


def expected_quality(
    known: StructureExpectations, features: Measured, accept_dice: float | None = None
) -> tuple[ExpectedQuality, float]:
    """What to expect of a structure that is in the mask, and the largest chance that its Dice is accepted."""
    value = value_of(known.dice, features)
    best, worst = bounds_of(known.dice, value, (1 - LEVEL) / 2)
    few = math.isinf(best) or math.isinf(worst)
    note = f"{known.patients} patients are too few for a range of {LEVEL:.0%}" if few else ""
    risk, accepted = (None, 1.0) if accept_dice is None else chance_above(known.dice, value, scale_of_dice(accept_dice))
    extent, components = (
        None if rule is None else math.expm1(min(value_of(rule, features), math.log1p(MOST)))
        for rule in (known.hd95, known.components)
    )
    quality = ExpectedQuality(
        dice=round(dice_of_scale(value), 4),
        low=round(dice_of_scale(worst), 4),
        high=round(dice_of_scale(best), 4),
        hd95_mm=None if extent is None else round(max(extent, 0.0), 2),
        components=None if components is None else round(max(components, 0.0), 2),
        risk=None if risk is None else round(risk, 4),
        note=note,
    )
    return quality, accepted


def empty_quality(known: StructureExpectations, accept_dice: float | None = None) -> ExpectedQuality | None:
    """Of a structure without a voxel: Dice 0 where every case has it; None where it may rightly be absent."""
    if not known.always_present:
        return None
    reason = f"no voxel of it was found; all cases of {known.patients} patients have it"
    return ExpectedQuality(0.0, 0.0, 0.0, risk=None if accept_dice is None else 1.0, reasons=(reason,))


def reasons_of(
    known: StructureExpectations, features: Measured, networks: Measured, shape: Measured, unit: str
) -> tuple[str, ...]:
    """The features that lower the expected Dice most against a usual case, in words."""
    usual, weights = known.features, known.dice.weights
    loss = {name: weights.get(name, 0.0) * (features[name] - usual[name]) for name in features if name in usual}
    worst = sorted((name for name in loss if loss[name] > LEAST), key=lambda name: -loss[name])[:REASONS]
    return tuple(_words(name, known, features, networks, shape, unit) for name in worst)


def _words(
    name: str, known: StructureExpectations, features: Measured, networks: Measured, shape: Measured, unit: str
) -> str:
    usual = known.features[name]
    if name in ("soft", "views"):
        what = "mask and probabilities have" if name == "soft" else "mirrored views have with their mean"
        return f"{what} Dice {1 - networks.get(name, 1.0):.2f}, usually {1 - 1 / (1 + _exp(-usual)):.2f}"
    if name == "entropy":
        return f"entropy {networks.get(name, 100.0):.2f} bits per voxel of the mask, usually {_exp(usual):.2f}"
    if name == "pieces":
        return f"{shape[name]:.0%} of it lies apart from its largest component, usually {known.shape[name][0]:.0%}"
    if name in ("volume", "extent"):
        here, there = (_exp(value) for value in (shape[name], known.shape[name][0]))
        if unit == "mm" and name == "volume":
            return f"volume {here / 1000:.3g} ml, usually {there / 1000:.3g} ml"
        return f"{name} {here:.3g} {unit}, usually {there:.3g} {unit}"
    what = {"intensities": "intensities", "texture": "noise or sharpness", "field": "field of view"}[name]
    return f"{what} of the image {math.expm1(features[name]):.1f} spreads from usual, usually {_exp(usual) - 1:.1f}"


def expectations_of_mask(
    rules: Expectations,
    heads: OutputChannels,
    indices: NDArray[np.integer],
    spacing: Sequence[float] | None,
    networks: Mapping[int, Measured],
    image: Measured,
    *,
    accept_dice: float | None = None,
    risk: float = 0.05,
) -> tuple[dict[str, ExpectedQuality], dict[str, str], list[Finding]]:
    """:func:`expectations_of` finished label indices (i, j, k) on a grid of this spacing in mm."""
    if (spacing is not None) != (rules.unit == "mm"):
        reason = f"not learned for images {'with' if spacing else 'without'} millimetres"
        return {}, {"": reason}, unjudged("", reason, accept_dice)
    names = [(channel, heads.names[channel]) for channel in heads.structures]
    shapes = measured_shape(indices, heads, spacing)
    return expectations_of(rules, names, networks, shapes, image, accept_dice=accept_dice, risk=risk)


def expectations_of(
    rules: Expectations,
    names: Sequence[tuple[int, str]],
    networks: Mapping[int, Measured],
    shapes: Mapping[int, Measured],
    image: Measured,
    *,
    accept_dice: float | None,
    risk: float,
) -> tuple[dict[str, ExpectedQuality], dict[str, str], list[Finding]]:
    """By name what to expect of each structure (channel, name); of which nothing, and why; and what follows from it."""
    found: dict[str, ExpectedQuality] = {}
    unknown: dict[str, str] = {}
    findings: list[Finding] = []
    for channel, name in names:
        known = rules.structures.get(name)
        if known is None:
            unknown[name] = rules.not_learned.get(name, "not learned")
            findings += unjudged(name, unknown[name], accept_dice)
            continue
        accepted = 0.0
        if shape := shapes[channel]:
            features = features_of(networks[channel], shape, image, known.shape, rules.image)
            quality, accepted = expected_quality(known, features, accept_dice)
            reasons = reasons_of(known, features, networks[channel], shape, rules.unit)
            quality = replace(quality, reasons=reasons, volume_ml=_volume(known, shape, rules.unit))
        elif (empty := empty_quality(known, accept_dice)) is not None:
            quality = empty
        else:
            unknown[name] = "no voxel of it was found, and some cases rightly have none"
            continue
        views = None if "views" not in known.features else round(1 - networks[channel].get("views", 1.0), 4)
        found[name] = quality = replace(quality, views=views)
        findings += _verdict(name, quality, accepted, accept_dice, risk)
    return found, unknown, findings


def unjudged(name: str, reason: str, accept_dice: float | None) -> list[Finding]:
    """What follows where a Dice is demanded and nothing is expected of a structure, or of any of them ("")."""
    if accept_dice is None:
        return []
    return [Finding("review", f"whether {name or 'the mask'} has Dice {accept_dice:g} is unknown: {reason}")]


def _volume(known: StructureExpectations, shape: Measured, unit: str) -> tuple[float, float | None] | None:
    """The range of the true volume in ml, without an upper end where there are too few patients."""
    if known.volume is None or unit != "mm":
        return None
    low, high = bounds_of(known.volume, known.volume.intercept, (1 - LEVEL) / 2)
    found = math.exp(shape["volume"]) / 1000
    return float(f"{found * _exp(low):.4g}"), None if math.isinf(high) else float(f"{found * _exp(high):.4g}")


def _verdict(
    name: str, quality: ExpectedQuality, accepted: float, accept_dice: float | None, risk: float
) -> Iterator[Finding]:
    if accept_dice is None or quality.risk is None or quality.risk <= risk:
        return
    level, word = ("reject", "is") if accepted <= risk else ("review", "may be")
    text = f"{name} {word} below Dice {accept_dice:g} (chance up to {quality.risk:.0%}): expected {quality.sentence()}"
    yield Finding(level, text)  # type: ignore[arg-type]
