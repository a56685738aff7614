"""The training loop of one fold."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medmamba.atomic import write_text
from medmamba.errors import ConfigError, MedmambaError
from medmamba.evaluation.dice import dice_per_label
from medmamba.inference.sliding_window import predict_logits
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.batches import Batch, PatchSource, batches
from medmamba.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from medmamba.training.config import TrainConfig
from medmamba.training.losses import DeepSupervision, dice_ce
from medmamba.training.schedule import Budget, poly_rate, warmed_up

MAX_BAD_STEPS = 5
"""Steps in a row whose loss or gradient is not finite before training stops."""


@dataclass(frozen=True)
class StepReport:
    """What a person sees while training runs."""

    step: int
    total_steps: int | None
    loss: float
    learning_rate: float
    validation_dice: float | None
    progress: float
    seconds: float
    seconds_left: float


@dataclass
class Progress:
    """What a resumed run must know besides weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    best_dice: float | None = None
    validation_dice: float | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training: where it is, how far it came."""

    folder: Path
    steps: int
    seconds: float
    final_loss: float
    validation_dice: float | None


def train_fold(
    network: nn.Module,
    plan: Plan,
    configuration: Configuration,
    training: Sequence[CaseReader],
    validation: Sequence[CaseReader],
    folder: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> TrainingResult:
    """Train ``network`` on the training cases and leave checkpoints, metrics and the recipe in ``folder``.

    ``facts`` are stored with every checkpoint (plan hash, network arguments). With ``resume`` the run goes on from its
    last checkpoint exactly: batches depend on (seed, step) alone.
    """
    device = choose_device(config.device)
    network = network.to(device)
    patch_size = tuple(configuration.patch_size)
    optimizer = make_optimizer(network, config)
    loss_function = DeepSupervision(dice_ce(batch_dice=configuration.batch_dice))
    budget = Budget(config.total_steps, config.max_minutes)
    checkpoints = folder / "checkpoints"
    done = Progress()
    if resume:
        done = Progress(**load_checkpoint(checkpoints, network, optimizer)["progress"])
    elif has_checkpoint(checkpoints):
        raise ConfigError(f"{folder}: holds a trained fold. Use --resume to go on, or --restart to begin again.")
    write_text(folder / "train.json", config.model_dump_json(indent=1) + "\n")

    source = PatchSource(
        training,
        augmentation_plan(patch_size, tuple(range(len(patch_size)))),
        config.batch_size or configuration.batch_size,
        seed=config.seed,
        first_step=done.step,
        augmented=config.augment,
    )

    def save(generation: str = "last") -> None:
        state = {**(facts or {}), "config": config.model_dump(), "progress": asdict(done)}
        save_checkpoint(checkpoints, network, optimizer if generation == "last" else None, state, generation=generation)

    started, before = time.monotonic(), done.seconds
    last_saved, bad_steps, losses, loss_value = started, 0, [], math.nan
    stream: Iterator[Batch] = batches(source, config.workers)
    try:
        while (share := budget.progress(done.step, done.seconds)) < 1.0:
            batch = next(stream)
            rate = warmed_up(poly_rate(config.learning_rate, share), done.step, config.warmup_steps)
            loss_value = _step(network, optimizer, loss_function, batch, rate, config.gradient_clip, device)
            bad_steps = 0 if math.isfinite(loss_value) else bad_steps + 1
            if bad_steps > MAX_BAD_STEPS:
                raise MedmambaError(
                    f"Training stopped at step {done.step}: the loss was not finite in {bad_steps} steps in a row, "
                    f"last with cases {', '.join(batch.case_ids)}. Check these images, or lower --learning-rate."
                )
            losses.append(loss_value)
            done.step += 1
            done.seconds = before + time.monotonic() - started
            if done.step % config.steps_per_epoch == 0:
                if validation:
                    done.validation_dice = validate(network, validation, configuration, plan, device)
                    done.seconds = before + time.monotonic() - started
                _end_epoch(folder, done, losses, rate)
                losses = []
                if done.validation_dice is not None and done.validation_dice >= (done.best_dice or 0.0):
                    done.best_dice = done.validation_dice
                    save("best")
            if time.monotonic() - last_saved > 60 * config.checkpoint_minutes:
                save()
                last_saved = time.monotonic()
            on_step(_report(done, config, budget, loss_value, rate))
        if validation:
            done.validation_dice = validate(network, validation, configuration, plan, device)
    except BaseException:
        # Interrupted or failed: keep what was learnt. A non-finite run must not replace a good checkpoint.
        if done.step and bad_steps == 0:
            save()
        raise
    finally:
        stream.close()  # type: ignore[attr-defined]
    save()
    return TrainingResult(folder, done.step, done.seconds, loss_value, done.validation_dice)


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device {name!r}. Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"Device {name!r} was asked for, but torch sees no GPU. Use --device cpu or auto.")
    return device


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.99 or AdamW; weight decay on matrices and kernels only.

    Biases, norms and the scan's own parameters (A, D, step bias) are never decayed: decay would pull the state's
    time constants to a value nobody chose.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        scan_parameter = name.rsplit(".", 1)[-1] in {"A_log", "A_logs", "D", "Ds", "dt_projs_bias", "dt_bias"}
        (kept if parameter.ndim <= 1 or scan_parameter else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


@torch.no_grad()
def validate(
    network: nn.Module, cases: Sequence[CaseReader], configuration: Configuration, plan: Plan, device: torch.device
) -> float:
    """Mean foreground Dice over whole validation volumes on the plan's grid; labels absent from a case do not count."""
    scores: list[float] = []
    labels = list(range(1, len(plan.labels)))
    for case in cases:
        image, truth = case.read_whole()
        logits = predict_logits(network, torch.from_numpy(image), tuple(configuration.patch_size), device)
        prediction = logits.argmax(0).cpu().numpy()
        scores.extend(dice_per_label(truth, prediction, labels).values())
    known = [score for score in scores if not math.isnan(score)]
    return float(np.mean(known)) if known else math.nan


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: nn.Module,
    batch: Batch,
    rate: float,
    clip: float,
    device: torch.device,
) -> float:
    """One optimiser step; a loss or gradient that is not finite leaves the weights as they are."""
    network.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss = loss_function(network(batch.image.to(device)), batch.label.to(device))
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
    if not (torch.isfinite(norm) and torch.isfinite(loss)):
        return math.nan
    optimizer.step()
    return float(loss.detach())


def _end_epoch(folder: Path, done: Progress, losses: list[float], rate: float) -> None:
    done.epochs.append(
        {
            "epoch": len(done.epochs) + 1,
            "step": done.step,
            "seconds": round(done.seconds, 1),
            "loss": float(np.nanmean(losses)),
            "validation_dice": done.validation_dice,
            "learning_rate": rate,
        }
    )
    header = list(done.epochs[0])
    rows = [",".join(str(epoch[key]) if epoch[key] is not None else "" for key in header) for epoch in done.epochs]
    write_text(folder / "metrics.csv", "\n".join([",".join(header), *rows]) + "\n")
    write_text(folder / "metrics.json", json.dumps(done.epochs, indent=1) + "\n")


def _report(done: Progress, config: TrainConfig, budget: Budget, loss: float, rate: float) -> StepReport:
    share = budget.progress(done.step, done.seconds)
    left = done.seconds * (1 - share) / share if share > 0 else math.inf
    return StepReport(done.step, config.total_steps, loss, rate, done.validation_dice, share, done.seconds, left)
