"""`medmamba plan --pilot MINUTES`: candidate networks trained briefly on one fold, compared case by case."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch

from medmamba.compute.device import choose_device
from medmamba.disk.atomic import write_json, write_text
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import ConfigError, MedmambaError
from medmamba.evaluation.statistics import paired_difference
from medmamba.models.checkpoint import load_checkpoint
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import read_model_facts
from medmamba.networks.build import rebuild_network
from medmamba.plans.options import NOTHING_TO_VALIDATE
from medmamba.plans.planner import what_if
from medmamba.plans.schema import Decision
from medmamba.plans.text_table import aligned, shortened
from medmamba.preprocessing.store import stored_cases
from medmamba.training.config import TrainConfig
from medmamba.training.epochs import validate
from medmamba.training.fold import train

FOLD = 0
"""The fold on which the candidates are compared."""

TIE = 0.005
"""Dice: the first candidate is kept unless another is ahead by more; a short training does not tell less apart."""
LINE_WIDTH = 80
"""Characters of the table of candidates."""
LONGEST_NAME = 17
"""Characters of a network's name in it, so that a candidate takes one line."""


@dataclass(frozen=True)
class Trial:
    """One candidate on the validation cases of the fold: its steps, and the mean Dice of every case."""

    network: str
    steps: int
    minutes: float
    dice: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean Dice over the cases that have one."""
        known = [value for value in self.dice.values() if not math.isnan(value)]
        return fmean(known) if known else math.nan


def compare(run: Path, minutes: float, candidates: Sequence[str], on_message: Callable[[str], None]) -> Decision:
    """Train all candidates on one fold of a planned run and choose the best; the run keeps report/pilot.json.

    Each trains with the patch and batch of its own plan for an equal part of ``minutes``, validation not included. One
    that cannot be planned or trained is reported to ``on_message``, as is the table, and omitted.

    Raises ConfigError when no candidate could be trained, or the dataset has nothing to validate on.
    """
    folder = RunFolder(run)
    held_out, trained = (set(folder.read_splits()[FOLD][part]) for part in ("val", "train"))
    if held_out & trained:
        raise ConfigError(NOTHING_TO_VALIDATE)
    trials = []
    with scratch_folder(run) as scratch:
        for name in candidates:
            try:
                trials.append(_try(folder, scratch / name, name, minutes / len(candidates), sorted(held_out)))
            except MedmambaError as error:
                on_message(f"{name} is left out: {error}")
    if not trials:
        raise ConfigError("--pilot: no candidate could be trained. Name a --network, or give more memory.")
    decision = choose(trials, minutes)
    for line in (*table_lines(trials), decision.reason):
        on_message(line)
    rows = [
        asdict(trial)
        | {"dice": {name: None if math.isnan(dice) else round(dice, 6) for name, dice in trial.dice.items()}}
        for trial in trials
    ]
    write_json(run / "report" / "pilot.json", {"schema_version": 1, "chosen": decision.value, "trials": rows})
    return decision


def choose(trials: Sequence[Trial], minutes: float) -> Decision:
    """The candidate with the highest mean Dice; the first one unless another is clearly ahead."""
    known = [trial for trial in trials if not math.isnan(trial.mean)]
    first = trials[0]
    best = max(known, key=lambda trial: trial.mean) if known else first
    clear = best is not first and not best.mean - first.mean <= TIE  # a first one without any Dice loses
    chosen = best if clear else first
    others = ", ".join(f"{trial.network} {trial.mean:.3f}" for trial in trials if trial is not chosen)
    reason = f"After {minutes / len(trials):.3g} minutes each, {chosen.network} has Dice {chosen.mean:.3f} ({others})"
    return Decision(
        name="network",
        value=chosen.network,
        inputs={
            "minutes": minutes,
            "cases": len(first.dice),
            "mean_dice": {trial.network: None if math.isnan(trial.mean) else round(trial.mean, 4) for trial in trials},
            "steps": {trial.network: trial.steps for trial in trials},
        },
        rule=f"highest mean Dice on the validation cases of one fold; the first one unless another is {TIE:g} ahead",
        reason=f"{reason}." if clear or best is first else f"{reason}: too close to leave the default.",
        source="pilot trainings on this dataset; short ones, so a hint and no proof",
    )


def table_lines(trials: Sequence[Trial]) -> list[str]:
    """The comparison as text of ``LINE_WIDTH``: every candidate's Dice, and its paired difference to the first."""
    rows = [("network", "steps", "Dice", "difference", "95% interval", "better", "worse")]
    first = trials[0]
    for trial in trials:
        found = paired_difference(list(first.dice.values()), [trial.dice[case_id] for case_id in first.dice])
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
        paired = (f"{found.difference:+.4f}", interval, str(found.higher), str(found.lower))
        of_trial = (shortened(trial.network, LONGEST_NAME), str(trial.steps), f"{trial.mean:.4f}")
        rows.append((*of_trial, *(paired if trial is not first else [""] * 4)))
    return aligned(rows, LINE_WIDTH)


def _try(folder: RunFolder, place: Path, name: str, minutes: float, held_out: Sequence[str]) -> Trial:
    now = folder.read_plan()
    plan = what_if(now, folder.read_fingerprint(), network=name)
    configuration = plan.configurations[now.default_configuration]
    if configuration.spacing_mm != now.default.spacing_mm:
        raise ConfigError("it is planned on another grid.")
    trial = RunFolder(place)
    write_text(trial.plan_path, plan.to_json())
    write_json(trial.splits_path, folder.read_splits())
    os.symlink(folder.preprocessed_path.resolve(), trial.preprocessed_path, target_is_directory=True)
    config = TrainConfig(max_minutes=minutes, steps_per_epoch=10**9, validation_cases=1)  # validated below, by case
    result = train(trial.path, fold=FOLD, configuration=configuration.name, config=config)
    network = rebuild_network(read_model_facts(result.folder).network)
    load_checkpoint(result.folder / "checkpoints", network)
    device = choose_device("auto")
    network = network.to(device).eval()
    cases = stored_cases(folder.preprocessed(configuration.name))
    with torch.no_grad():
        dice = {name: validate(network, [cases[name]], plan, configuration, device).mean for name in held_out}
    return Trial(name, result.steps, round(result.seconds / 60, 2), dice)
