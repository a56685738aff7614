"""Dice of each trained fold on the cases it was not trained on, on the plan's grid, and the worst and best of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.command_options import ReportOptions
from medmamba.errors import InputError
from medmamba.evaluation.dice import dice_of_channels
from medmamba.evaluation.statistics import mean_of_known
from medmamba.geometry.display import Display
from medmamba.inference.options import PredictorOptions
from medmamba.inference.trained_model import FoldEnsemble, load_model
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import refuse_other_cases
from medmamba.preprocessing.case import plan_display
from medmamba.preprocessing.store import CaseReader, stored_cases
from medmamba.training.epochs import spread_subset

SHOWN = 3
"""Worst cases, and best cases, that are kept with their voxels."""


@dataclass(frozen=True)
class CaseScore:
    """Dice of every structure in one case; nan where it is absent from truth and prediction."""

    case_id: str
    fold: str
    dice: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean over the structures that are there."""
        return mean_of_known(self.dice.values())


@dataclass(frozen=True, eq=False)
class ShownCase:
    """One case on the plan's grid: image (C, I, J, K), truth and prediction as label indices (I, J, K).

    The image is the first channel, or all three of a photograph.
    """

    score: CaseScore
    image: NDArray[np.float32]
    truth: NDArray[np.integer]
    prediction: NDArray[np.integer]
    display: Display


@dataclass
class CrossValidation:
    """All scores, and the worst and best cases, the worst first. ``held_out``: no case was seen in training."""

    configuration: str
    held_out: bool
    scores: list[CaseScore] = field(default_factory=list)
    worst: list[ShownCase] = field(default_factory=list)
    best: list[ShownCase] = field(default_factory=list)

    def add(self, shown: ShownCase) -> None:
        """Count a case, and keep its voxels if it is among the worst or the best."""
        self.scores.append(shown.score)
        if math.isnan(shown.score.mean):
            return
        self.worst = sorted([*self.worst, shown], key=lambda case: case.score.mean)[:SHOWN]
        self.best = sorted([*self.best, shown], key=lambda case: -case.score.mean)[:SHOWN]

    def folds(self) -> list[str]:
        """Names of the folds, in order."""
        return sorted({score.fold for score in self.scores})

    def mean(self, structure: str | None = None, fold: str | None = None) -> tuple[float, float, int]:
        """Mean, standard deviation and count of the Dice of a structure (or of the case means), in one or all folds."""
        chosen = [score for score in self.scores if fold in (None, score.fold)]
        values = [score.mean if structure is None else score.dice[structure] for score in chosen]
        known = [value for value in values if not math.isnan(value)]
        return mean_of_known(known), float(np.std(known)) if known else math.nan, len(known)


def cross_validate(run: RunFolder, options: ReportOptions, on_item: Callable[[str, int, int], None]) -> CrossValidation:
    """Predict the validation cases of every trained fold of the default configuration.

    Where only a model of all cases is trained, some of its training cases are shown and said to be that.
    Raises InputError when nothing is trained, or the preprocessed cases are gone.
    """
    plan = run.read_plan()
    run.need_cases(plan)
    name = plan.default_configuration
    readers = stored_cases(run.preprocessed(name))
    if not readers:
        raise InputError(f"{run.preprocessed(name)}: no preprocessed cases. Run `medmamba plan` again.")
    work = _work(run, name, readers, options.cases)
    found = CrossValidation(name, held_out=all(folder.name != "fold_all" for folder, _ in work))
    total = sum(len(chosen) for _, chosen in work)
    done = 0
    choices = PredictorOptions(device=options.device, mirror=options.mirror, scan_backend=options.scan_backend)
    for folder, chosen in work:
        (ensemble,) = load_model(folder, choices).ensembles
        for reader in chosen:
            on_item("validate", done, total)
            found.add(_predicted(ensemble, reader, folder.name))
            done += 1
    on_item("validate", total, total)
    return found


def _work(
    run: RunFolder, name: str, readers: dict[str, CaseReader], most: int | None
) -> list[tuple[Path, Sequence[CaseReader]]]:
    """Each fold's folder with the cases it is asked about."""
    trained = {folder.name: folder for folder in run.trained_folds(name)}
    if not trained:
        raise InputError(f"{run.path}: no trained fold of {name}. Run `medmamba train {run.path}` first.")
    splits = run.read_splits() if run.splits_path.is_file() else []
    numbered = [
        (trained[f"fold_{number}"], [readers[case] for case in split["val"] if case in readers])
        for number, split in enumerate(splits)
        if f"fold_{number}" in trained
    ]
    for number, split in enumerate(splits):
        if f"fold_{number}" in trained:
            refuse_other_cases(trained[f"fold_{number}"], split)
    if numbered:
        return [(folder, spread_subset(chosen, most)) for folder, chosen in numbered]
    folder = next(iter(trained.values()))
    return [(folder, spread_subset(list(readers.values()), most or 2 * SHOWN))]


@torch.no_grad()
def _predicted(ensemble: FoldEnsemble, case: CaseReader, fold: str) -> ShownCase:
    image, truth = case.read_whole()
    output_channels = ensemble.heads
    planes = ensemble.planes(torch.from_numpy(image))
    prediction = np.stack([output_channels.label_map(plane).numpy() for plane in planes]).astype(np.uint8)
    annotated = output_channels.annotated(case.annotated)
    found = dice_of_channels(truth, prediction, output_channels, annotated, output_channels.structures)
    scores = {output_channels.names[channel]: value for channel, value in found.items()}
    display = plan_display(truth.shape, ensemble.plan, ensemble.configuration, case.affine)
    shown = image if display.stored.affine is None and len(image) == 3 else image[:1]
    return ShownCase(CaseScore(case.case_id, fold, scores), shown, truth, prediction, display)
