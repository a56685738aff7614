"""Bounds of the numbers that a network is built from; without pydantic, because bundles ship this file."""

from collections.abc import Sequence
from math import prod

MOST_STAGES, MOST_BLOCKS, WIDEST, LARGEST_KERNEL, LARGEST_STRIDE = 16, 128, 2048, 63, 64
MOST_WEIGHTS = 2**30
"""Largest number of weights of the convolutions of a network: 4 GiB."""
MOST_CHANNELS = 2**16
"""Largest number of input or output channels: the number of values of a label map."""


def check_size(
    strides: Sequence[Sequence[int]], features: Sequence[int], blocks: Sequence[int], kernels: Sequence[Sequence[int]]
) -> None:
    """Raises ValueError for numbers per stage, of a plan or a stored model, that are out of bounds."""
    if len(strides) > MOST_STAGES:
        raise ValueError(f"strides has {len(strides)} stages, at most {MOST_STAGES} are built")
    for name, values, low, high in (
        ("strides", [step for stage in strides for step in stage], 1, LARGEST_STRIDE),
        ("kernel_sizes", [edge for stage in kernels for edge in stage], 1, LARGEST_KERNEL),
        ("features_per_stage", features, 1, WIDEST),
        ("blocks_per_stage", blocks, 0, MOST_BLOCKS),
    ):
        if wrong := [value for value in values if not low <= value <= high]:
            raise ValueError(f"{name} must be from {low} to {high}, got {str(wrong[0])[:20]}")
    stages = zip(features, blocks, kernels, strict=True)
    weights = sum(width**2 * max(1, count) * prod(kernel) for width, count, kernel in stages)
    if weights > MOST_WEIGHTS:
        raise ValueError(f"features_per_stage {list(features)} make {weights:.1e} weights, at most {MOST_WEIGHTS:.1e}")
