"""One optimiser step, skipped if not finite; learning rate, torch.compile (--compile), averaged weights (--ema)."""

import copy
import math
from collections.abc import Callable
from math import cos, pi
from typing import Any, NamedTuple

import torch
from torch import nn

from medmamba.compute.device import casting, choose_precision, is_out_of_memory
from medmamba.errors import ConfigError, first_line
from medmamba.models.output_channels import OutputChannels
from medmamba.training import distributed
from medmamba.training.batches import Batch
from medmamba.training.config import TrainConfig

SCAN_PARAMETERS = {"A_log", "A_logs", "D", "Ds", "dt_projs_bias", "dt_bias"}


class StepOutcome(NamedTuple):
    """The loss (nan when the step was skipped), the batch's foreground Dice where it was measured, and the batch."""

    loss: float
    dice: float | None
    batch: Batch


class _Queued(NamedTuple):
    """A step whose work a GPU has not done yet: its numbers, on the way to the host, and when they are there."""

    numbers: torch.Tensor
    arrival: torch.cuda.Event
    batch: Batch


CLOSING_FRACTION = 0.25
"""Largest fraction of a budget of time that is kept free for what follows the last step."""
POLY_EXPONENT = 0.9
"""Exponent of nnU-Net's polynomial decay."""
FULL_RATE_INPUTS = 64
"""Inputs of a linear map up to which it learns at the full rate."""


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.99 or AdamW; weight decay on matrices and kernels only.

    Biases, norms and the scan's own parameters (A, D, step bias) are never decayed: decay would pull the state's
    time constants to a value nobody chose. Frozen parameters are left out. With AdamW, every group has the ``scale``
    of its rate: see :func:`rate_scale`. On a GPU a step is one kernel, which also leaves out what is not finite.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in SCAN_PARAMETERS
        scale = rate_scale(parameter) if decayed and config.optimizer == "adamw" else 1.0
        groups.setdefault((decayed, scale), []).append(parameter)
    if not groups:
        raise ConfigError("Every parameter is frozen, so there is nothing to train. Freeze less.")
    settings = [
        {"params": groups[decayed, scale], "weight_decay": config.weight_decay if decayed else 0.0, "scale": scale}
        for decayed, scale in sorted(groups, reverse=True)
    ]
    fused = True if next(network.parameters()).device.type == "cuda" else None
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.learning_rate, momentum=0.99, nesterov=True, fused=fused)
    return torch.optim.AdamW(settings, lr=config.learning_rate, fused=fused)


def rate_scale(matrix: nn.Parameter) -> float:
    """Fraction of the learning rate for a matrix or kernel: 1 up to 64 inputs of a linear map, then falling with them.

    Adam moves every weight by about the rate, so the output of a map of n inputs moves by n times as much, and a rate
    that suits narrow maps is too high for wide ones (Yang et al. 2022, arXiv:2203.03466, table 3). Convolutions keep
    the full rate: the norm behind each makes them indifferent to the size of their weights.
    """
    return min(1.0, FULL_RATE_INPUTS / matrix.shape[-1]) if matrix.ndim <= 3 else 1.0


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its fraction of this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the last step, before each group's fraction."""
    group = optimizer.param_groups[0]
    return float(group["lr"] / group["scale"])


def budget_used(config: TrainConfig, step: int, seconds: float, closing: float = 0.0) -> float:
    """Fraction of the steps or minutes used after ``step`` steps and ``seconds`` of training, 0 to 1; the larger one.

    ``closing`` are the seconds that the end will take (validation, checkpoint); of the minutes at most a quarter is
    kept free for them.
    """
    by_steps = 0.0 if config.total_steps is None else step / config.total_steps
    by_time = 0.0
    if config.max_minutes is not None:
        limit = 60 * config.max_minutes
        by_time = seconds / (limit - min(closing, CLOSING_FRACTION * limit))
    return min(1.0, max(by_steps, by_time))


def learning_rate(config: TrainConfig, step: int, used: float) -> float:
    """The rate of a step where the fraction ``used`` of the budget is used: the schedule's, after a linear warm-up.

    Poly is nnU-Net's schedule with the fraction in place of epochs; cosine: Loshchilov 2017, arXiv:1608.03983.
    """
    factor = (1.0 - used) ** POLY_EXPONENT if config.schedule == "poly" else 0.5 * (1.0 + cos(pi * used))
    rate = config.learning_rate * factor
    return rate * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps > 0 else rate


class Stepper:
    """Applies batches to a network; a step that is not finite leaves weights and optimiser as they were.

    On a GPU the host queues a step and then reads the outcome of the step before: it never waits for what it has just
    queued, and the GPU decides by itself whether the step is finite.

    Args:
        loss: of outputs, label indices and annotated channels, as :class:`DeepSupervision`.
        channels: what the outputs mean; None: no Dice is measured.
        forward: the network, or the network compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: nn.Module,
        channels: OutputChannels | None,
        config: TrainConfig,
        forward: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self.network = network
        self.forward = forward or network
        self.optimizer = optimizer
        self.device = device = next(network.parameters()).device
        self.loss = loss.to(device)
        self.channels = channels
        self.clip = config.gradient_clip
        self.precision = choose_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type) if self.precision == "fp16" else None
        self.reads_later = device.type == "cuda"
        """Whether a step's outcome is returned by the step after it."""
        self._queued: _Queued | None = None

    def step(self, batch: Batch, rate: float, *, measure: bool = False) -> StepOutcome | None:
        """One step at this learning rate; ``measure`` adds the Dice of the batch.

        Returns its outcome, or on a GPU that of the step before, None for the first.
        """
        self.network.train()
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        image, label = batch.image.to(self.device), batch.label.to(self.device)
        annotated = None if batch.annotated is None else batch.annotated.to(self.device)
        with casting(self.precision, self.device):
            outputs = self.forward(image)
        loss = self.loss(outputs, label, annotated)
        measured = [*self._overlap(outputs, label, self.channels)] if measure and self.channels else []
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()
        distributed.average_gradients(self.network)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_([p for p in self.network.parameters() if p.grad is not None], self.clip)
        broken = distributed.anywhere(~(torch.isfinite(loss.detach()) & torch.isfinite(norm)))
        numbers = torch.stack([number.detach().float() for number in (loss, broken, *measured)])
        if self.reads_later:
            self._update(broken)
            arrival = torch.cuda.Event()
            before, self._queued = self._queued, _Queued(numbers.to("cpu", non_blocking=True), arrival, batch)
            arrival.record(torch.cuda.current_stream(self.device))
            return self._outcome(before)
        if self.scaler is not None or not broken:
            self._update(None)
        return _outcome(numbers, batch)

    def last(self) -> StepOutcome | None:
        """The outcome of the last step where it was not returned yet; the host waits for it."""
        before, self._queued = self._queued, None
        return self._outcome(before)

    def _update(self, broken: torch.Tensor | None) -> None:
        """The optimiser's step; on a GPU it leaves out what is ``broken``, on the GPU."""
        if self.scaler is not None:
            self.scaler.step(self.optimizer)  # leaves out a step whose gradients are not finite
            self.scaler.update()
            return
        if broken is not None:  # how GradScaler tells fused optimisers
            vars(self.optimizer)["found_inf"] = broken.float()
        self.optimizer.step()

    @staticmethod
    def _outcome(queued: _Queued | None) -> StepOutcome | None:
        if queued is None:
            return None
        queued.arrival.synchronize()
        return _outcome(queued.numbers, queued.batch)

    @property
    def loss_scale_is_searching(self) -> bool:
        """Whether fp16 is still searching for its loss scale: overflows then are part of the search."""
        return self.scaler is not None and self.scaler.get_scale() > 1.0

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside weights and optimiser, JSON-able."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """The counterpart of :meth:`state`."""
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])

    @staticmethod
    @torch.no_grad()
    def _overlap(
        outputs: torch.Tensor | list[torch.Tensor], label: torch.Tensor, channels: OutputChannels
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Foreground voxels of the batch in both prediction and truth, and in each, added up; for the Dice."""
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        prediction, truth = torch.stack([channels.label_map(one.float()) for one in logits]), label[:, 0]
        known = torch.ones_like(truth, dtype=torch.bool) if channels.ignore is None else truth != channels.ignore
        hit = ((prediction == truth) & (prediction > 0) & known).sum()
        return hit, ((prediction > 0) & known).sum() + ((truth > 0) & known).sum()


def _outcome(numbers: torch.Tensor, batch: Batch) -> StepOutcome:
    """From loss, whether the step is broken, and the voxels of :meth:`Stepper._overlap`, on the host."""
    loss, broken, *measured = numbers.tolist()
    dice = None
    if measured:
        hit, both = measured
        dice = 2 * hit / both if both else math.nan
    return StepOutcome(math.nan if broken else loss, dice, batch)


class Compiled:
    """A network through torch.compile; from the first failure on the network itself, which is reported once.

    Weights are the network's own, so checkpoints, averages and validation do not depend on it.
    """

    def __init__(self, network: nn.Module, report: Callable[[str], None]) -> None:
        self._network, self._report = network, report
        self._forward: Callable[[torch.Tensor], Any] | None = None

    def __call__(self, image: torch.Tensor) -> Any:
        """The network's outputs for ``image``."""
        try:
            if self._forward is None:
                # Patches have one size; where a second one comes, inductor fails on sizes that are symbols.
                self._forward = torch.compile(self._network, dynamic=False)
            return self._forward(image)
        except Exception as error:
            if self._forward is self._network or is_out_of_memory(error):
                raise
            self._report(f"--compile: torch.compile failed ({first_line(error)}); continuing without it.")
            self._forward = self._network
        return self._network(image)


class AveragedWeights:
    """A copy of a network whose weights follow it slowly.

    The decay is warmed up as (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten.
    Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float, steps: int = 0) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = steps

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move a little towards the weights of ``network``; numbers that are not floating point are copied."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [theirs for _, theirs in floating], 1 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)
