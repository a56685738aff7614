"""Time of one training step: the work of its layers over the rates of a machine.

    seconds = 6 products / R_products + 6 taps / R_taps + updates / R_updates + kept bytes / R_bytes
              + weight bytes / R_weights + layers * overhead

Products and taps are multiply-accumulates of the forward pass; the backward pass has twice as many, and each is two
operations. Kept bytes are what the memory model counts in float32: maps that are written once and read again, once
forwards and once backwards, by everything between the products (norms, activations, gates, sums, the loss). The rates
are those that whole training steps reach, not those of a datasheet; docs/benchmarks/time_model.md has measured and
predicted side by side. Augmentation, validation and checkpoints are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medmamba.errors import ConfigError, unknown_name
from medmamba.plans.cost.layers import layers
from medmamba.plans.cost.memory import training_memory
from medmamba.plans.schema import Decision, NetworkPlan

PER_PRODUCT = 2 * 3
"""Operations of a multiply-accumulate in the forward and the backward pass."""

EPOCHS, STEPS_PER_EPOCH = 1000, 250
"""Length of a training when none is asked for. Source: nnU-Net."""

LEAST_STEPS = 500
"""Optimiser steps that a budget must allow. What decides in a short training is their number: on hippocampus Dice rose
from 0.753 at 133 steps to 0.822 at 264 and 0.862 at 1221, and on the left ventricle 684 steps in 2D came to 0.696 where
56 in 3D came to 0.529. Source: docs/benchmarks/ablation.md and accuracy.md."""

STEP_SHARE = 0.9
"""Share of a training's hours that the predicted steps may fill; the rest goes to validation and checkpoints.
Patches and augmentation come out of the prediction's margin: with them the steps of docs/benchmarks/accuracy.md
took 0.75 to 1.2 of what is predicted."""


@dataclass(frozen=True)
class Machine:
    """Rates that training steps reach, per second."""

    name: str
    precision: str
    """What `medmamba train --precision auto` takes there."""
    products: float
    """Operations of convolutions and matrix products at that precision."""
    taps: float
    """Operations of depthwise and deformable convolutions."""
    updates: float
    """State updates of a scan, its backward pass included."""
    bytes: float
    """Kept bytes with everything that reads and writes them."""
    weight_bytes: float
    """Bytes of the weights' gradients, with clipping, optimiser and reordering."""
    overhead: float
    """Seconds of a layer that depend on no size."""
    source: str


def _gpu(name: str, precision: str, products: float, memory: float, exponentials: float) -> Machine:
    """A GPU from its datasheet: operations of its matrix units, bytes and exponentials per second.

    The shares are guesses until a GPU is measured: 0.3 of the matrix units, 0.6 of the memory's rate with 6 passes over
    what is kept and 10 over the gradients, a tap moves 4 bytes for its two operations, and an update and its gradients
    take 3 exponentials at a third of their rate.
    """
    moved = 0.6 * memory
    return Machine(
        name,
        precision,
        *(0.3 * products, moved / 2, exponentials / 9, moved / 6, moved / 10, 1e-4),
        source="not measured: from the datasheet with assumed shares",
    )


_CPU = (30e9, 2.4e9, 1.4e9, 0.6e9, 1.4e-3)
"""One thread of a server core (Zen 5, AVX-512), torch 2.13. The updates are those of docs/benchmarks/kernels_cpu.md;
the other rates, and 240e9 for products (twice in bf16), were fitted to the steps of all families together in
docs/benchmarks/time_model.md, and rounded."""

MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine(
            "cpu",
            "bfloat16",
            *(480e9, *_CPU),
            source="measured: one thread of a Zen 5 server core, AVX-512 with bf16 products, torch 2.13",
        ),
        Machine(
            "cpu-fp32",
            "float32",
            *(240e9, *_CPU),
            source="measured: the same thread in float32, as on processors with AVX-512 that do not multiply bf16",
        ),
        _gpu("t4", "float16", 65e12, 320e9, 1.0e12),
        _gpu("rtx4090", "bfloat16", 165e12, 1008e9, 5.2e12),
        _gpu("a100", "bfloat16", 312e12, 1555e9, 2.4e12),
        _gpu("h100", "bfloat16", 989e12, 3350e9, 4.2e12),
    )
}
"""The machines that plans are timed for. The rates are constants, so that a plan depends on no measurement."""


def machine(text: str) -> Machine:
    """A machine by name, "cpu:4" with that many threads.

    Raises ConfigError with the nearest name for an unknown one.
    """
    name, colon, threads = text.partition(":")
    if name not in MACHINES:
        raise unknown_name("machine", name, list(MACHINES))
    found = MACHINES[name]
    if not colon:
        return found
    if not name.startswith("cpu") or not threads.isdigit() or int(threads) < 1:
        raise ConfigError(f"machine {text!r}: a number of threads follows a CPU only, as cpu:4.")
    count = int(threads)
    rates = {field: getattr(found, field) * count for field in ("products", "taps", "updates", "bytes", "weight_bytes")}
    return replace(found, name=text, **rates, source=f"{found.source}; {count} threads at best")


@dataclass(frozen=True)
class Work:
    """What one training step does, for the whole batch; see the top of this file."""

    products: float
    taps: float
    updates: float
    bytes: float
    weight_bytes: float
    layers: int

    def seconds(self, on: Machine) -> float:
        """Seconds on a machine, of all its threads together."""
        return (
            PER_PRODUCT * (self.products / on.products + self.taps / on.taps)
            + self.updates / on.updates
            + self.bytes / on.bytes
            + self.weight_bytes / on.weight_bytes
            + self.layers * on.overhead
        )


def training_work(
    network: NetworkPlan, patch_size: Sequence[int], *, in_channels: int, out_channels: int, batch_size: int
) -> Work:
    """The work of a training step of ``network`` on ``batch_size`` patches."""
    made = list(layers(network, patch_size, in_channels, out_channels))
    memory = training_memory(
        network, patch_size, in_channels=in_channels, out_channels=out_channels, batch_size=batch_size
    )
    return Work(
        products=batch_size * math.fsum(layer.voxels * layer.products for layer in made),
        taps=batch_size * math.fsum(layer.voxels * layer.taps for layer in made),
        updates=batch_size * math.fsum(layer.voxels * layer.updates for layer in made),
        bytes=memory.activations,
        weight_bytes=memory.gradients,
        layers=len(made),
    )


def least_hours(seconds: float) -> float:
    """Hours of training in which LEAST_STEPS steps of so many seconds fit."""
    return LEAST_STEPS * seconds / STEP_SHARE / 3600


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
            "multiply_accumulates": round(work.products + work.taps),
            "scan_updates": round(work.updates),
            "kept_bytes": round(work.bytes),
            "rates": on.source,
        },
        rule="the work of each kind over the machine's rate for it, forward and backward pass and optimiser",
        reason=f"On {on.name} a step takes about {_span(seconds)}, {steps}, {whole}; patches and validation are extra.",
        source="medmamba.plans.cost.step_time; docs/benchmarks/time_model.md",
    )


def _span(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
