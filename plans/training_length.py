"""Length of a training: the default, and the least that a budget of hours must allow."""

from __future__ import annotations

EPOCHS, STEPS_PER_EPOCH = 1000, 250
"""Length of a training when none is asked for. Source: nnU-Net."""

LEAST_STEPS = 500
"""Optimiser steps that a budget must allow. What decides in a short training is their number: on hippocampus Dice rose
from 0.753 at 133 steps to 0.822 at 264 and 0.862 at 1221, and on the left ventricle 684 steps in 2D came to 0.696 where
56 in 3D came to 0.529. Source: docs/benchmarks/ablation.md and accuracy.md."""

STEP_FRACTION = 0.9
"""Fraction of a training's hours that the predicted steps may fill; the rest goes to validation and checkpoints.
Patches and augmentation come out of the prediction's margin: with them the steps of docs/benchmarks/accuracy.md
took 0.75 to 1.2 of what is predicted."""
