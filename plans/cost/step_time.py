"""Time of one training step: the work of its layers over the rates of a machine.

    seconds = 6 macs / R_macs + 6 depthwise_macs / R_depthwise + updates / R_updates + kept bytes / R_bytes
              + weight bytes / R_weights + layers * overhead

macs are multiply-accumulates of the forward pass between channels, depthwise_macs those within a channel; the backward
pass has twice as many, and each is two operations. Kept bytes are what the memory model counts in float32: maps that
are written once and read again, once forwards and once backwards, by everything between the convolutions and matrix
products (norms, activations, gates, sums, the loss). The rates are those that whole training steps reach, not those of
a datasheet; docs/benchmarks/time_model.md has measured and predicted side by side. Augmentation, validation and
checkpoints are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medmamba.plans.cost.layers import layers
from medmamba.plans.cost.machines import Machine
from medmamba.plans.cost.memory import training_memory
from medmamba.plans.schema import Decision, NetworkPlan
from medmamba.plans.training_length import EPOCHS, STEPS_PER_EPOCH

OPERATIONS_PER_MAC = 2 * 3
"""Operations of a multiply-accumulate in the forward and the backward pass."""


@dataclass(frozen=True)
class Work:
    """What one training step does, for the whole batch; see the top of this file."""

    macs: float
    depthwise_macs: float
    updates: float
    bytes: float
    weight_bytes: float
    layers: int

    def seconds(self, on: Machine) -> float:
        """Seconds on a machine, of all its threads together."""
        return (
            OPERATIONS_PER_MAC * (self.macs / on.macs + self.depthwise_macs / on.depthwise_macs)
            + self.updates / on.updates
            + self.bytes / on.bytes
            + self.weight_bytes / on.weight_bytes
            + self.layers * on.overhead
        )


def training_work(
    network: NetworkPlan, patch_size: Sequence[int], in_channels: int, out_channels: int, batch_size: int
) -> Work:
    """The work of a training step of ``network`` on ``batch_size`` patches."""
    made = list(layers(network, patch_size, in_channels, out_channels))
    memory = training_memory(network, patch_size, in_channels, out_channels, batch_size)
    return Work(
        macs=batch_size * math.fsum(layer.voxels * layer.macs for layer in made),
        depthwise_macs=batch_size * math.fsum(layer.voxels * layer.depthwise_macs for layer in made),
        updates=batch_size * math.fsum(layer.voxels * layer.updates for layer in made),
        bytes=memory.activations,
        weight_bytes=memory.gradients,
        layers=len(made),
    )


def time_decision(work: Work, on: Machine) -> Decision:
    """What a step, an epoch and a whole training cost on a machine."""
    seconds = work.seconds(on)
    steps = f"an epoch of {STEPS_PER_EPOCH} steps {_span(STEPS_PER_EPOCH * seconds)}"
    whole = f"the default training of {EPOCHS} epochs {_span(EPOCHS * STEPS_PER_EPOCH * seconds)}"
    return Decision(
        name="step_seconds",
        value=float(f"{seconds:.3g}"),
        inputs={
            "machine": on.name,
            "precision": on.precision,
            "multiply_accumulates": round(work.macs),
            "depthwise_multiply_accumulates": round(work.depthwise_macs),
            "scan_updates": round(work.updates),
            "kept_bytes": round(work.bytes),
            "weight_bytes": round(work.weight_bytes),
            "layers": work.layers,
            "rates": on.source,
        },
        rule=f"the work of each kind over the machine's rate for it, {OPERATIONS_PER_MAC} operations a "
        f"multiply-accumulate (forward and backward pass), and a fixed time per layer",
        reason=f"On {on.name} a step takes about {_span(seconds)}, {steps}, {whole}; patches and validation are extra.",
        source="medmamba.plans.cost.step_time; docs/benchmarks/time_model.md",
    )


def _span(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
