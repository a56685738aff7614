"""What follows the last fold of a cross-validation: find-best, where it takes little against the training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmamba.model_selection.expected_quality import MOST_CASES, copies_of
from medmamba.models.checkpoint import KIND, read_state
from medmamba.models.network import mirroring_of
from medmamba.models.run_folder import RunFolder
from medmamba.plans.json_record import as_written
from medmamba.plans.options import EPOCHS
from medmamba.preprocessing.store import stored_cases

LITTLE = 0.1
"""Of the time that all folds were trained for."""
CLOSING = 0.25
"""Part of a budget of time that a training may leave for its last validation."""


@dataclass(frozen=True)
class WholeCrossValidation:
    """Number of trained folds, the seconds that they took, and those that find-best will take, estimated."""

    folds: int
    trained: float
    find_best: float

    @property
    def is_cheap(self) -> bool:
        """Whether find-best takes little against the training."""
        return self.find_best <= LITTLE * self.trained


def whole_cross_validation(run: str | Path) -> WholeCrossValidation | None:
    """The cross-validation of a run, if all folds of the configurations that were begun are trained; else None.

    find-best predicts each validation case once, and to learn what to expect of masks again with its harmed copies,
    each with all mirror images; how long that takes is estimated from the validations during training.
    """
    folder = RunFolder(Path(run))
    plan, splits = folder.read_plan(), folder.read_splits()
    trained = find_best = 0.0
    count, cases = 0, sum(len(fold["val"]) for fold in splits)
    begun = {name: {path.name: path for path in folder.trained_folds(name)} for name in plan.configurations}
    begun = {name: present for name, present in begun.items() if set(present) - {"fold_all"}}
    again = (
        (1 + copies_of(min(cases, MOST_CASES), list(begun), plan)) * min(1, MOST_CASES / max(cases, 1)) if begun else 0
    )
    for name, present in begun.items():
        if not stored_cases(folder.preprocessed(name)):
            return None
        for number, fold in enumerate(splits):
            path = present.get(f"fold_{number}")
            if path is None:
                return None
            with as_written(path / "checkpoints" / "last" / "state.json", KIND, "Restore the file."):
                state = read_state(path / "checkpoints" / "last")
                config, progress = state["config"], state["progress"]
                if not _ended(config, progress):
                    return None
                trained += progress["seconds"]
                validations = max(1, math.ceil(progress["step"] / config["steps_per_epoch"]))
                seen = min(config["validation_cases"] or len(fold["val"]), len(fold["val"]))
                once = progress["validation_seconds"] / validations * len(fold["val"]) / max(seen, 1)
            find_best += once * 2 ** len(mirroring_of(plan, plan.configurations[name]).axes) * (1 + again)
            count += 1
    return WholeCrossValidation(count, trained, find_best) if count else None


def _ended(config: Mapping[str, Any], progress: Mapping[str, Any]) -> bool:
    """Whether a training used its budget, or may have been stopped early by its own rule."""
    steps = [] if config["steps"] is None else [config["steps"]]
    if config["epochs"] is not None or not (steps or config["max_minutes"]):
        steps.append((config["epochs"] or EPOCHS) * config["steps_per_epoch"])
    by_steps = bool(steps) and progress["step"] >= min(steps)
    minutes = config["max_minutes"]
    by_time = minutes is not None and progress["seconds"] >= (1 - CLOSING) * 60 * minutes
    return by_steps or by_time or config["patience"] is not None
