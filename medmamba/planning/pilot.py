"""`medmamba plan --pilot MINUTES`: candidate networks trained briefly on one fold, compared case by case."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from statistics import fmean
from typing import Any

from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import ConfigError, MedmambaError
from medmamba.models.run_folder import RunFolder
from medmamba.plans.schema import Decision

TIE = 0.005
"""Dice: the first candidate is kept unless another is ahead by more; a short training does not tell less apart."""


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


def compare(run: str | Path, minutes: float, candidates: Sequence[str], on_message: Callable[[str], None]) -> Decision:
    """Try all candidates on a planned run and choose the best; the run keeps report/pilot.json.

    Args:
        minutes: of training, in all; each candidate gets an equal part. Validation comes on top.
        on_message: receives the table of the comparison, line by line.

    Raises ConfigError when no candidate could be trained, or the dataset has nothing to validate on.
    """
    trials = run_pilot(run, minutes, candidates, on_message=on_message)
    decision = choose(trials, minutes)
    for line in (*table_lines(trials), decision.reason):
        on_message(line)
    rows = [{"network": t.network, "steps": t.steps, "minutes": t.minutes, "dice": _known(t.dice)} for t in trials]
    record = {"schema_version": 1, "chosen": decision.value, "trials": rows}
    write_json(Path(run) / "report" / "pilot.json", record)
    return decision


def run_pilot(
    run: str | Path,
    minutes: float,
    candidates: Sequence[str],
    *,
    fold: int = 0,
    on_message: Callable[[str], None] = lambda line: None,
) -> list[Trial]:
    """Train each candidate on a fold of a planned run, each with the patch and batch that its own plan gives it.

    A candidate that cannot be planned or trained is reported and left out; raises ConfigError when none is left.
    """
    folder = RunFolder(Path(run))
    held_out, trained = (set(folder.read_splits()[fold][part]) for part in ("val", "train"))
    if held_out & trained:
        raise ConfigError("--pilot needs two patients or more: there is nothing to validate on. Name a --network.")
    trials = []
    try:
        for name in candidates:
            try:
                trials.append(_try(folder, name, minutes / len(candidates), fold, sorted(held_out)))
            except MedmambaError as error:
                on_message(f"{name} is left out: {error}")
    finally:
        rmtree(folder.path / "pilot", ignore_errors=True)
    if not trials:
        raise ConfigError("--pilot: no candidate could be trained. Name a --network, or give more memory.")
    return trials


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
    """The comparison as aligned text: every candidate's Dice, and its paired difference from the first one's."""
    from medmamba.evaluation.statistics import paired_difference

    rows = [("network", "steps", "Dice", "difference", "95% interval", "better", "worse")]
    first = trials[0]
    for trial in trials:
        found = paired_difference(list(first.dice.values()), [trial.dice[case_id] for case_id in first.dice])
        paired = (
            f"{found.difference:+.4f}",
            f"{found.low:+.4f} to {found.high:+.4f}",
            f"{found.higher}",
            f"{found.lower}",
        )
        rows.append(
            (trial.network, str(trial.steps), f"{trial.mean:.4f}", *(paired if trial is not first else [""] * 4))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _try(folder: RunFolder, name: str, minutes: float, fold: int, held_out: Sequence[str]) -> Trial:
    import torch

    from medmamba.compute.device import choose_device
    from medmamba.models.checkpoint import load_checkpoint
    from medmamba.models.output_channels import OutputChannels
    from medmamba.networks.build import build_network
    from medmamba.planning.what_if import what_if
    from medmamba.preprocessing.store import stored_cases
    from medmamba.training.config import TrainConfig
    from medmamba.training.run import train
    from medmamba.training.validation import validate

    now, plan = what_if(folder.path, network=name)
    configuration = plan.configurations[now.default_configuration]
    if configuration.spacing_mm != now.default.spacing_mm:
        raise ConfigError("it is planned on another grid.")
    trial = RunFolder(folder.path / "pilot" / name)
    write_text(trial.plan_path, plan.to_json())
    write_json(trial.splits_path, folder.read_splits())
    os.symlink(folder.preprocessed_path.resolve(), trial.preprocessed_path, target_is_directory=True)
    config = TrainConfig(max_minutes=minutes, steps_per_epoch=10**9, validation_cases=1)  # validated below, by case
    result = train(trial.path, fold=fold, configuration=configuration.name, config=config)
    network = build_network(**_arguments(result.folder))
    load_checkpoint(result.folder / "checkpoints", network)
    device = choose_device("auto")
    network = network.to(device).eval()
    cases = stored_cases(folder.preprocessed(configuration.name))
    heads = OutputChannels.of_plan(plan)
    with torch.no_grad():
        dice = {name: validate(network, [cases[name]], configuration, heads, device).mean for name in held_out}
    return Trial(name, result.steps, round(result.seconds / 60, 2), dice)


def _arguments(folder: Path) -> dict[str, Any]:
    from medmamba.models.model_facts import read_model_facts

    return read_model_facts(folder).network


def _known(dice: dict[str, float]) -> dict[str, float | None]:
    return {case_id: None if math.isnan(value) else round(value, 6) for case_id, value in dice.items()}
