"""Memory and time of one training step: sums over the layers of a network, and the time on a machine.

The peak of the memory is reached where the backward pass begins or, in a network with many weights on a small patch,
where it reaches the encoder (all decoder maps gone, most weight gradients there), or in the optimiser's step. The time
is the work of each kind over the rate that whole training steps reach (docs/benchmarks/time_model.md): the backward
pass has twice as many multiply-accumulates as the forward pass, and kept bytes are maps that are written once and read
again by everything between the matrix products. Augmentation, validation and checkpoints are not in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medmamba.plans.cost.layers import Layer, largest_layer, layers, light_width, stage_voxels
from medmamba.plans.cost.machines import Machine
from medmamba.plans.families import family
from medmamba.plans.options import EPOCHS, STEPS_PER_EPOCH
from medmamba.plans.schema import Decision, NetworkPlan

FLOAT32 = 4
"""Bytes per number. Plans are made for float32, the most that a training takes."""

OPTIMISER_SLOTS = 2
"""Numbers that AdamW keeps per weight."""

LOSS_WORKSPACE = 2
"""Further maps per class while the loss is computed or its gradient taken."""

OPERATIONS_PER_MAC = 2 * 3
"""Operations of a multiply-accumulate in the forward and the backward pass."""


@dataclass(frozen=True)
class StepCost:
    """Memory (bytes) and operations of one training step, for the whole batch."""

    weights: int
    """Weights and the optimiser's numbers."""
    gradients: int
    """Gradients of the weights, complete at the end of the backward pass."""
    activations: int
    """Everything kept from the forward pass to the backward pass."""
    encoder_activations: int
    """The part of it that is still there when the backward pass reaches the encoder."""
    workspace: int
    """Temporary maps where the backward pass begins."""
    encoder_workspace: int
    """Temporary maps while the backward pass is in the encoder."""
    largest_weight: int
    """The weights of the largest layer, which are copied while its gradient is taken and twice in its update."""
    macs: float
    depthwise_macs: float
    updates: float
    layers: int

    @property
    def peak(self) -> int:
        """Largest of the three in bytes."""
        return max(self.moments.values())

    @property
    def moments(self) -> dict[str, int]:
        """Bytes where the backward pass begins, where it reaches the encoder, and in the optimiser's step."""
        encoder = self.gradients + self.encoder_activations + self.encoder_workspace + self.largest_weight
        return {
            "backward_begins": self.weights + self.activations + self.workspace,
            "backward_in_encoder": self.weights + encoder,
            "optimiser_step": self.weights + self.gradients + 2 * self.largest_weight,
        }

    def seconds(self, on: Machine) -> float:
        """Seconds on a machine, of all its threads together."""
        return (
            OPERATIONS_PER_MAC * (self.macs / on.macs + self.depthwise_macs / on.depthwise_macs)
            + self.updates / on.updates
            + self.activations / on.bytes
            + self.gradients / on.weight_bytes
            + self.layers * on.overhead
        )


def step_cost(
    network: NetworkPlan, patch_size: Sequence[int], in_channels: int, out_channels: int, batch_size: int
) -> StepCost:
    """The cost of a training step of ``network`` on ``batch_size`` patches in float32 with AdamW."""
    made = list(layers(network, patch_size, in_channels, out_channels))
    full = math.prod(patch_size)
    top = light_width(network) if stage_voxels(network, patch_size)[0] < full else network.features_per_stage[0]
    weights = FLOAT32 * sum(layer.cost.weights for layer in made)
    sample = FLOAT32 * batch_size
    # The gradients of a scan are at most as large as what its block kept.
    scan_gradients = max((layer.voxels * layer.cost.kept / 2 for layer in made if layer.part == "block"), default=0)

    def total(kind: str, parts: Sequence[Layer] = made) -> float:
        return math.fsum(layer.voxels * getattr(layer.cost, kind) for layer in parts)

    encoder = [layer for layer in made if layer.part != "decoder"]
    loss_maps = max(family(network.name).backward_maps * top, LOSS_WORKSPACE * out_channels)
    return StepCost(
        weights=weights * (1 + OPTIMISER_SLOTS),
        gradients=weights,
        activations=round(sample * total("kept")),
        encoder_activations=round(sample * total("kept", encoder)),
        workspace=round(sample * full * loss_maps),
        encoder_workspace=round(sample * scan_gradients),
        largest_weight=FLOAT32 * largest_layer(network),
        macs=batch_size * total("macs"),
        depthwise_macs=batch_size * total("depthwise_macs"),
        updates=batch_size * total("updates"),
        layers=sum(layer.cost.weights > 0 for layer in made),
    )


def cost_decisions(cost: StepCost, device_memory_gb: float, on: Machine) -> list[Decision]:
    """The memory of a training step, and the time that it, an epoch and a whole training take on a machine."""
    seconds = cost.seconds(on)
    steps = f"an epoch of {STEPS_PER_EPOCH} steps {_span(STEPS_PER_EPOCH * seconds)}"
    whole = f"the default training of {EPOCHS} epochs {_span(EPOCHS * STEPS_PER_EPOCH * seconds)}"
    memory = Decision(
        name="training_memory_gb",
        value=round(cost.peak / 1e9, 3),
        inputs={
            "weights_bytes": cost.weights + cost.gradients,
            "activations_bytes": cost.activations,
            "workspace_bytes": cost.workspace,
            "bytes_at": cost.moments,
            "precision": "float32",
            "optimiser": "adamw",
            "device_memory_gb": device_memory_gb,
        },
        rule="the largest of three moments: the backward pass begins, it reaches the encoder, the optimiser steps; "
        "each with weights, optimiser state, and the activations, gradients and temporary maps of that moment",
        reason=f"One training step in float32 is expected to need {cost.peak / 1e9:.2g} of {device_memory_gb:g} GB.",
        source="medmamba.plans.cost.step; docs/benchmarks/memory_model.md",
    )
    time = Decision(
        name="step_seconds",
        value=float(f"{seconds:.3g}"),
        inputs={
            "machine": on.name,
            "precision": on.precision,
            "multiply_accumulates": round(cost.macs),
            "depthwise_multiply_accumulates": round(cost.depthwise_macs),
            "scan_updates": round(cost.updates),
            "kept_bytes": cost.activations,
            "weight_bytes": cost.gradients,
            "layers": cost.layers,
            "rates": on.source,
        },
        rule=f"the work of each kind over the machine's rate for it, {OPERATIONS_PER_MAC} operations a "
        f"multiply-accumulate (forward and backward pass), and a fixed time per layer",
        reason=f"On {on.name} a step takes about {_span(seconds)}, {steps}, {whole}; patches and validation are extra.",
        source="medmamba.plans.cost.step; docs/benchmarks/time_model.md",
    )
    return [memory, time]


def _span(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
