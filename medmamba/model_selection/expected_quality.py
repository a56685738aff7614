"""What `medmamba find-best` learns about the quality of masks without truth: rules from cross-validated cases.

Every validation case and harmed copies of it are predicted by the fold that has not seen the case, as `medmamba
predict` would do it, and compared with the truth on the plan's grid.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.errors import counted
from medmamba.evaluation.dice import dice
from medmamba.evaluation.lesions import count_lesions
from medmamba.evaluation.surface import surface_distances
from medmamba.geometry import Grid
from medmamba.inference.cascade import one_hot
from medmamba.inference.confidence import Confidence
from medmamba.inference.evidence import Measured, NetworkEvidence, measured_image, measured_shape
from medmamba.inference.expected import features_of, scale_of_dice
from medmamba.inference.options import PredictorOptions
from medmamba.inference.trained_model import FoldEnsemble, load_model
from medmamba.inference.uncertainty import EDGES, doubt_of
from medmamba.model_selection.corruption import HARMS, harmed
from medmamba.model_selection.rule import fit_rule
from medmamba.models.cleaning import clean
from medmamba.models.expectations import FEATURES, Expectations, QualityRule, StructureExpectations, Usual
from medmamba.models.network import previous_labels
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.models.run_folder import RunFolder
from medmamba.plans.schema import Plan
from medmamba.preprocessing.labels import label_names
from medmamba.preprocessing.resample import interpolate_linear
from medmamba.preprocessing.store import CaseReader, stored_cases

LEAST_PATIENTS = 8
"""Fewer say nothing about a structure."""
MOST_CASES = 150
"""Cases that are harmed and predicted again; of more, this many that are spread over all."""
WANTED_COPIES, COPIES = 80, (2, 8)
"""Harmed copies together, and of each case at least and at most."""
LEAST_SPREAD = {"volume": 0.05, "extent": 0.05, "pieces": 0.02}
LEAST_IMAGE_SPREAD = 0.05


def learn_expectations(
    folder: RunFolder,
    plan: Plan,
    recipe: PredictionSetup,
    folds: Mapping[str, Mapping[int, Path]],
    shared: Sequence[int],
    choices: PredictorOptions,
    on_item: Callable[[str, int, int], None],
) -> Expectations:
    """Rules of expected quality from the validation cases of these folds, predicted by what the recipe chose."""
    splits, patients = folder.read_splits(), folder.read_patients()
    cases = [case_id for fold in shared for case_id in splits[fold]["val"]]
    count = len({patients.get(case_id, case_id) for case_id in cases})
    wanted = spread_cases(cases) if count >= LEAST_PATIENTS else set()
    learner = ExpectationLearner(plan, recipe, count, copies_of(len(wanted), recipe.configurations, plan))
    weights: dict[str, dict[str, str]] = {name: {} for name in recipe.configurations}
    done = 0
    used: list[FoldEnsemble] = []
    for fold in shared:
        used = [load_model(folds[name][fold], choices).ensembles[0] for name in recipe.configurations]
        for ensemble in used:
            weights[ensemble.name] |= ensemble.weights_sha256()
        readers = [stored_cases(folder.preprocessed(name)) for name in recipe.configurations]
        for case_id in sorted(wanted & set(splits[fold]["val"])):
            on_item("learn", done, len(wanted))
            learner.judge(used, [each[case_id] for each in readers], patients.get(case_id, case_id))
            done += 1
    if wanted:
        on_item("learn", done, done)
    return learner.rules(
        used[0].heads,
        weights_sha256=weights,
        mirror=any(ensemble.window.mirror_axes for ensemble in used),
        step=used[0].window.step,
        unit="mm" if folder.read_fingerprint().has_millimetres else "voxels",
    )


@dataclass(frozen=True)
class JudgedCase:
    """A case or a harmed copy of it (``harm``): what was measured, and per channel Dice, HD95, wrong components and the
    logarithm of the true volume over that of the mask."""

    patient: str
    harm: str
    image: Measured
    networks: Mapping[int, Measured]
    shapes: Mapping[int, Measured]
    truth_shapes: Mapping[int, Measured]
    truths: Mapping[int, tuple[float, float, float, float]]


@dataclass
class ExpectationLearner:
    """Judges cases one after the other, and makes the rules of all."""

    plan: Plan
    recipe: PredictionSetup
    patients: int
    copies: int
    judged: list[JudgedCase] = field(default_factory=list)
    doubts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, len(EDGES) + 1)))
    """Of voxels of unharmed cases by group of doubt: number, sum of doubts, number of errors."""

    def judge(self, ensembles: Sequence[FoldEnsemble], readers: Sequence[CaseReader], patient: str) -> None:
        """Predict a stored case, and its harmed copies; one reader and ensemble for each configuration."""
        given = [self._read(*pair) for pair in zip(ensembles, readers, strict=True)]
        spacing = _spacing(readers[0], ensembles[0])
        annotated = ensembles[0].heads.annotated(readers[0].annotated)
        for harm, images, truth in self._versions(given, readers[0].case_id):
            self.judged.append(self._judged(ensembles, images, truth, spacing, annotated, patient, harm))

    def _read(self, ensemble: FoldEnsemble, reader: CaseReader) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        image, truth = reader.read_whole()
        if before := previous_labels(ensemble.plan, ensemble.configuration):
            image = np.concatenate([image, one_hot(reader.read_previous(), before)])
        return image, truth

    def _versions(
        self, given: Sequence[tuple[NDArray[np.float32], NDArray[np.int16]]], case_id: str
    ) -> Iterator[tuple[str, list[NDArray[np.float32]], NDArray[np.int16]]]:
        yield "", [image for image, _ in given], given[0][1]
        (image, truth), kinds = given[0], list(HARMS)
        first = len(self.judged) // (1 + self.copies) * self.copies
        for number in range(self.copies):
            kind = kinds[(first + number) % len(kinds)]
            words = np.frombuffer(hashlib.sha256(f"{case_id} {number}".encode()).digest()[:16], np.uint32)
            random = np.random.default_rng(words)
            schemes = [entry.scheme for entry in self.plan.normalization]
            changed, labels = harmed(image, truth, kind, float(random.random()), random, schemes)
            yield kind, [changed], labels

    def _judged(
        self,
        ensembles: Sequence[FoldEnsemble],
        images: Sequence[NDArray[np.float32]],
        truth: NDArray[np.int16],
        spacing: Sequence[float] | None,
        annotated: Sequence[bool],
        patient: str,
        harm: str,
    ) -> JudgedCase:
        heads = ensembles[0].heads
        evidence = NetworkEvidence(heads)
        labels, doubt = self._labels(ensembles, images, evidence, spacing)
        own = images[0][: len(self.plan.channel_names)]
        known = np.ones(truth.shape, bool) if heads.ignore is None else truth != heads.ignore
        if not harm and all(annotated):
            group = np.digitize(doubt[known], EDGES)
            weights = (None, doubt[known], (labels != truth)[known])
            self.doubts += [np.bincount(group, weight, len(EDGES) + 1) for weight in weights]
        unit = (1.0, 1.0, 1.0) if spacing is None else tuple(spacing)
        truths = {}
        for channel in heads.structures:
            if annotated[channel]:
                wanted, given = (np.isin(each, heads.members[channel]) & known for each in (truth, labels))
                truths[channel] = _errors(wanted, given, unit)
        return JudgedCase(
            patient=patient,
            harm=harm,
            image=measured_image(own, spacing),
            networks=evidence.of_structures(),
            shapes=measured_shape(labels, heads, spacing),
            truth_shapes={} if harm else measured_shape(truth, heads, spacing),
            truths=truths,
        )

    def _labels(
        self,
        ensembles: Sequence[FoldEnsemble],
        images: Sequence[NDArray[np.float32]],
        evidence: NetworkEvidence,
        spacing: Sequence[float] | None,
    ) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """The mask as predict makes it (mean of the configurations, thresholds, post-processing), and the doubt."""
        heads, recipe = ensembles[0].heads, self.recipe
        mean: torch.Tensor | None = None
        for number, (ensemble, image) in enumerate(zip(ensembles, images, strict=True)):
            confidence = Confidence(sigmoid=heads.sigmoid, evidence=evidence) if number == 0 else None
            logits = torch.stack(list(ensemble.planes(torch.from_numpy(image), confidence=confidence)), dim=1)
            found = heads.probabilities(logits / recipe.temperature)
            if mean is not None:
                found = torch.stack([interpolate_linear(each, tuple(mean.shape[1:])) for each in found])
            mean = found if mean is None else mean + found
        assert mean is not None
        mean /= len(ensembles)
        labels = heads.label_map(mean, recipe.thresholds_of(heads.names)).numpy()
        voxel_mm3 = None if spacing is None else math.prod(spacing)
        cleaned = clean(labels, recipe.cleaning, label_names(self.plan), voxel_mm3)
        return cleaned, doubt_of(mean, sigmoid=heads.sigmoid)

    def rules(self, heads: Any, **facts: Any) -> Expectations:
        """The expectations of all structures; ``facts`` are the other fields of :class:`Expectations`."""
        unharmed = [case for case in self.judged if not case.harm]
        looks = unharmed[0].image if unharmed else ()
        image = {name: _usual([case.image[name] for case in unharmed if name in case.image]) for name in looks}
        found: dict[str, StructureExpectations] = {}
        lacking: dict[str, str] = {}
        for channel in heads.structures:
            rows = [case for case in self.judged if not math.isnan(case.truths.get(channel, (math.nan,))[0])]
            patients = {case.patient for case in rows if not case.harm and case.truth_shapes[channel]}
            found_in = {case.patient for case in rows if not case.harm and case.shapes[channel]}
            name = heads.names[channel]
            if not unharmed:
                have = counted(self.patients, "patient")
                lacking[name] = f"not learned: {have} in cross-validation, {LEAST_PATIENTS} are needed"
            elif len(patients) < LEAST_PATIENTS:
                what = "present in no validation case" if not patients else f"{len(patients)} patients have it"
                lacking[name] = f"not learned: {what}, {LEAST_PATIENTS} are needed"
            elif len(found_in) < LEAST_PATIENTS:
                where = f"in {counted(len(found_in), 'patient')}, {LEAST_PATIENTS} are needed"
                lacking[name] = f"not learned: the model finds it {where if found_in else 'in no validation case'}"
            else:
                found[name] = _structure(rows, channel, image, len(patients), facts["unit"])
        return Expectations(
            plan_sha256=self.plan.hash(),
            recipe_sha256=self.recipe.hash(),
            cases=len(unharmed),
            copies=self.copies,
            image=image,
            voxel_errors=_curve(self.doubts),
            structures=found,
            not_learned=lacking,
            **facts,
        )


def copies_of(cases: int, configurations: Sequence[str], plan: Plan) -> int:
    """Harmed copies of each of this many cases; none for several grids, or a grid that another stage has to fill."""
    if len(configurations) > 1 or plan.configurations[configurations[0]].previous_stage:
        return 0
    return min(max(math.ceil(WANTED_COPIES / max(cases, 1)), COPIES[0]), COPIES[1])


def spread_cases(cases: Sequence[str]) -> set[str]:
    """Those that are learned from: all, or :data:`MOST_CASES` evenly spread ones."""
    ordered = sorted(cases)
    if len(ordered) <= MOST_CASES:
        return set(ordered)
    return {ordered[index * len(ordered) // MOST_CASES] for index in range(MOST_CASES)}


def _structure(
    rows: Sequence[JudgedCase], channel: int, image: Mapping[str, Usual], patients: int, unit: str
) -> StructureExpectations:
    truths = [case.truth_shapes[channel] for case in rows if not case.harm and case.truth_shapes[channel]]
    shape = {name: _usual([one[name] for one in truths], LEAST_SPREAD[name]) for name in LEAST_SPREAD}
    present = [case for case in rows if case.shapes[channel]]
    features = [features_of(case.networks[channel], case.shapes[channel], case.image, shape, image) for case in present]
    names = [name for name in FEATURES if all(name in one for one in features)]
    table = np.array([[one[name] for name in names] for one in features])
    usual = np.median(table[[not case.harm for case in present]], axis=0)
    groups = [case.patient for case in present]
    errors = np.array([case.truths[channel] for case in present])

    def rule(values: NDArray[np.float64], used: int = len(names)) -> QualityRule | None:
        known = np.isfinite(values)
        chosen = [group for group, here in zip(groups, known, strict=True) if here]
        if len(set(chosen)) < LEAST_PATIENTS:
            return None
        return fit_rule(names[:used], table[known, :used], values[known], chosen)

    of_dice = fit_rule(names, table, np.array([scale_of_dice(value) for value in errors[:, 0]]), groups)
    return StructureExpectations(
        patients=patients,
        always_present=all(case.truth_shapes[channel] for case in rows if not case.harm),
        shape=shape,
        features={name: round(float(value), 6) for name, value in zip(names, usual, strict=True)},
        dice=of_dice,
        hd95=rule(np.log1p(errors[:, 1])) if unit == "mm" else None,
        components=rule(np.log1p(errors[:, 2])),
        volume=rule(errors[:, 3], 0),
    )


def _curve(doubts: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Mean doubt and fraction of errors of each group of voxels, made ascending (isotonic regression)."""
    from scipy.optimize import isotonic_regression

    count, doubt, errors = doubts[:, doubts[0] > 0]
    if not len(count):
        return []
    chances = isotonic_regression(errors / count, weights=count).x
    places = doubt / count
    return [(round(float(place), 6), round(float(chance), 6)) for place, chance in zip(places, chances, strict=True)]


def _usual(values: Sequence[float], least: float = LEAST_IMAGE_SPREAD) -> Usual:
    low, middle, high = np.percentile(np.array(values), (25, 50, 75))
    return round(float(middle), 6), round(max(float(high - low) / 1.349, least), 6)


def _errors(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[float, float, float, float]:
    """Dice, HD95, components that are missed or false, and the logarithm of true over found volume (nan for none)."""
    either = truth | mask
    if not either.any():
        return math.nan, math.nan, math.nan, math.nan
    places = [np.flatnonzero(either.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(int(place[0]), int(place[-1]) + 1) for place in places)
    truth, mask = truth[box], mask[box]
    lesions = count_lesions(truth, mask)
    wrong = lesions.in_truth - lesions.found + lesions.false
    true, found = int(truth.sum()), int(mask.sum())
    ratio = math.log(true / found) if true and found else math.nan
    return dice(truth, mask), surface_distances(truth, mask, spacing).hausdorff(), float(wrong), ratio


def _spacing(reader: CaseReader, ensemble: FoldEnsemble) -> Sequence[float] | None:
    """Of the stored arrays, in mm; from the plan for cases of earlier versions."""
    if reader.affine is not None:
        return Grid(reader.shape, reader.affine).spacing_mm
    planned = ensemble.configuration.spacing_mm
    return planned if planned is not None and len(planned) == 3 else None
