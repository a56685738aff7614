"""`medmamba find-best`: configurations, ensembles, thresholds, cleaning and limits of uncertainty by cross-validation.

Expected quality of masks without truth is learned from the same cases (expected_quality.py).

Everything is measured on the plan's grid, on validation cases, each predicted by the one fold that has not seen it.
Folds that are not trained are left out. What wins is written to RUN/best.json, and predict uses it from then on.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmamba.command_options import FindBestOptions
from medmamba.disk.atomic import write_text
from medmamba.disk.lock import FolderLock
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import InputError
from medmamba.inference.cascade import one_hot
from medmamba.inference.confidence import Confidence
from medmamba.inference.options import PredictorOptions
from medmamba.inference.trained_model import FoldEnsemble, load_model
from medmamba.model_selection.candidate import EnsembleCandidate, ValidatedCase, choose_cleaning, choose_thresholds
from medmamba.model_selection.expected_quality import learn_expectations
from medmamba.models.expectations import EXPECTATIONS
from medmamba.models.network import previous_labels
from medmamba.models.output_channels import OutputChannels
from medmamba.models.prediction_setup import PREDICTION_SETUP, Limits, PredictionSetup
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import refuse_other_cases
from medmamba.preprocessing.labels import label_names
from medmamba.preprocessing.resample import interpolate_linear
from medmamba.preprocessing.store import CaseReader, stored_cases

SAMPLED_VOXELS = 4000
"""Voxels per case that the temperature is fitted to."""
TEMPERATURES = np.geomspace(0.5, 4.0, 25)
MIN_CASES = 10
"""Fewest usual cases to measure limits on; with fewer the fixed ones stay (see inference/quality.py)."""
ALARM_PERCENT = 5.0
"""Usual cases that the limits may send to review."""
FENCE = 1.5
"""A case whose Dice lies more than this many interquartile ranges below the lower quartile is not usual (Tukey)."""


def find_best(
    run: str | Path,
    options: FindBestOptions | None = None,
    *,
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **changes: Any,
) -> PredictionSetup:
    """The recipe chosen on cross-validation, which is stored in the run; ``changes`` are fields of the options by name.

    Raises InputError when no fold with validation cases is trained.
    """
    options = FindBestOptions.of(options, **changes)
    choices = PredictorOptions(device=options.device, mirror=options.mirror, scan_backend=options.scan_backend)
    folder = RunFolder(Path(run))
    plan = folder.read_plan()
    folder.need_cases(plan)
    own = folder.own_files(overwrite=options.overwrite)
    own.refuse_foreign([folder.path / PREDICTION_SETUP, folder.path / EXPECTATIONS])
    output_channels = OutputChannels.of_plan(plan)
    splits = folder.read_splits()
    folds = _trained(folder, list(plan.configurations), len(splits))
    shared = sorted(set.intersection(*(set(found) for found in folds.values()))) if folds else []
    if not shared:
        raise InputError(
            f"{run}: no fold of the cross-validation is trained with its cases preprocessed. Run `medmamba train {run} "
            "--fold 0`, and as many other folds as you can."
        )
    names = [(name,) for name in folds] + list(combinations(folds, 2))
    candidates = {each: EnsembleCandidate(output_channels) for each in names}
    total, done = sum(len(splits[fold]["val"]) for fold in shared), 0
    with ExitStack() as stack:
        for folders in folds.values():  # a fold in training would change between its cases
            for fold in shared:
                stack.enter_context(FolderLock(folders[fold]))
        folder.check_unchanged(plan)
        for folders in folds.values():
            for fold in shared:
                refuse_other_cases(folders[fold], splits[fold])
        kept = stack.enter_context(scratch_folder(options.scratch))
        for fold in shared:
            ensembles = {name: load_model(folds[name][fold], choices).ensembles[0] for name in folds}
            readers = {name: stored_cases(folder.preprocessed(name)) for name in folds}
            for case_id in splits[fold]["val"]:
                on_item("validate", done, total)
                probabilities = {}
                for name, ensemble in ensembles.items():
                    probabilities[name] = _validate(ensemble, readers[name][case_id], candidates[(name,)], Path(kept))
                for first, second in combinations(folds, 2):
                    ours = probabilities[first]
                    other = torch.stack([interpolate_linear(p, tuple(ours.shape[1:])) for p in probabilities[second]])
                    alone = candidates[(first,)].cases[case_id]
                    where = Path(kept) / f"{len(candidates[first, second].cases)}-{first}+{second}.npy"
                    candidates[first, second].add(case_id, (ours + other) / 2, alone, where)
                done += 1
        on_item("validate", total, total)
        dices = {each: candidate.mean_dice() for each, candidate in candidates.items()}
        known = {each: value for each, value in dices.items() if not math.isnan(value)}
        if not known:
            raise InputError(f"{run}: no foreground in any validation case; nothing can be chosen.")
        best = max(known, key=lambda each: (round(known[each], 6), -len(each)))
        chosen = candidates[best]
        thresholds = choose_thresholds(chosen) if output_channels.sigmoid else {}
        cleaning = choose_cleaning(chosen, label_names(plan))
        seen = candidates[best[:1]].cases.values()
        recipe = PredictionSetup(
            plan_sha256=plan.hash(),
            configurations=list(best),
            folds={name: [folds[name][fold].name for fold in shared] for name in best},
            dice={"+".join(each): round(value, 6) for each, value in known.items()},
            cases=total,
            thresholds=thresholds,
            cleaning=cleaning,
            temperature=softmax_temperature(chosen.logits, chosen.targets),
            limits=quality_limits([case.entropy for case in seen], [case.dice for case in seen]),
            mirror=options.mirror,
        )
        learned = None
        if options.expectations:
            learned = learn_expectations(folder, plan, recipe, folds, shared, choices, on_item)
        with own.recording():
            write_text(folder.path / PREDICTION_SETUP, recipe.sealed_json())
            if learned is None:
                own.remove([folder.path / EXPECTATIONS])
            else:
                write_text(folder.path / EXPECTATIONS, learned.sealed_json())
    return recipe


def _trained(folder: RunFolder, names: list[str], count: int) -> dict[str, dict[int, Path]]:
    found = {}
    for name in names:
        present = {path.name: path for path in folder.trained_folds(name)}
        numbered = {fold: present[f"fold_{fold}"] for fold in range(count) if f"fold_{fold}" in present}
        if numbered and stored_cases(folder.preprocessed(name)):
            found[name] = numbered
    return found


def _validate(ensemble: FoldEnsemble, case: CaseReader, candidate: EnsembleCandidate, kept: Path) -> torch.Tensor:
    """Probabilities (classes, I, J, K) of a stored case; what is to be compared goes to the candidate."""
    image, truth = case.read_whole()
    if before := previous_labels(ensemble.plan, ensemble.configuration):
        image = np.concatenate([image, one_hot(case.read_previous(), before)])
    confidence = Confidence(sigmoid=ensemble.heads.sigmoid)
    logits = torch.stack(list(ensemble.planes(torch.from_numpy(image), confidence=confidence)), dim=1).float()
    spacing = ensemble.configuration.spacing_mm
    voxel_mm3 = math.prod(spacing) if spacing is not None and len(spacing) == 3 else None
    annotated = tuple(ensemble.heads.annotated(case.annotated))
    probabilities = ensemble.heads.probabilities(logits)
    where = kept / f"{len(candidate.cases)}-{ensemble.name}.npy"
    facts = ValidatedCase(truth=truth, annotated=annotated, voxel_mm3=voxel_mm3, entropy=confidence.entropy)
    labels = candidate.add(case.case_id, probabilities, facts, where).labels
    if not ensemble.heads.sigmoid:
        near = torch.from_numpy(((labels > 0) | (truth > 0)) & (truth < len(logits)))  # where labels are uncertain
        flat, target = logits[:, near].T, torch.from_numpy(truth.astype(np.int64))[near]
        stride = max(1, len(flat) // SAMPLED_VOXELS)
        candidate.logits.append(flat[::stride])
        candidate.targets.append(target[::stride])
    return probabilities


def quality_limits(entropies: Sequence[float | None], dices: Sequence[float]) -> Limits | None:
    """Limits that almost no validation case exceeds; None for too few cases.

    Entropy: the 95th percentile. Agreement of folds: the 5th percentile of the Dice with the truth. A case of
    cross-validation has only one fold that has not seen it, so how far folds differ from their mean cannot be measured
    there; how far one differs from the truth bounds it, because their mean is nearer to the truth than each of them.
    """
    known = np.array([pair for pair in zip(entropies, dices, strict=True) if pair[0] is not None], float).reshape(-1, 2)
    known = known[~np.isnan(known[:, 1])]
    if len(known) < MIN_CASES:
        return None
    lower, upper = np.percentile(known[:, 1], (25, 75))
    usual = known[known[:, 1] >= lower - FENCE * (upper - lower)]
    if len(usual) < MIN_CASES:
        return None
    return Limits(
        max_entropy=round(float(np.percentile(usual[:, 0], 100 - ALARM_PERCENT, method="higher")), 4) + 1e-4,
        min_agreement=math.floor(float(np.percentile(usual[:, 1], ALARM_PERCENT, method="lower")) * 1e4) / 1e4,
        cases=len(usual),
    )


def softmax_temperature(logits: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> float:
    """The divisor of logits (voxels, classes) with the smallest cross-entropy that raises it for no class.

    1 where there is nothing to measure: sigmoid heads, and ensembles of configurations.
    """
    if not sum(map(len, logits)):
        return 1.0
    values, truth = torch.cat(list(logits)), torch.cat(list(targets))

    def losses(temperature: float) -> tuple[float, torch.Tensor]:
        each = torch.nn.functional.cross_entropy(values / temperature, truth, reduction="none").double()
        sums = torch.zeros(values.shape[1], dtype=torch.float64).index_add_(0, truth, each)
        return float(each.mean()), sums

    mean, before = losses(1.0)
    best = mean, 1.0
    for temperature in map(float, TEMPERATURES):
        mean, after = losses(temperature)
        if bool((after <= before).all()):
            best = min(best, (mean, temperature))
    return round(best[1], 4)
