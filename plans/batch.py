"""Batch size: what the memory holds, but not more than the reference batch and 5 % of the dataset, and at least two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from medmamba.plans.schema import Decision

REFERENCE_BATCH = {2: 12, 3: 2}
"""Patches per batch at which nnU-Net's reference memory was set, and our largest batch: at equal time, more steps serve
better than larger batches. Source: nnU-Net 2.8.1, UNet_reference_val_corresp_bs."""

MIN_BATCH = 2
"""Source: nnU-Net, UNet_min_batch_size."""

DATASET_FRACTION = 0.05
"""Largest fraction of the dataset's voxels in one batch. Source: nnU-Net, max_dataset_covered."""


def choose_batch_size(
    patch_size: Sequence[int],
    dataset_voxels: float,
    bytes_for: Callable[[int], int],
    limit_bytes: int,
    in_time: Callable[[int], bool] | None = None,
) -> tuple[int, Decision]:
    """The batch size of a patch; ``bytes_for(batch)`` is the memory of a training step.

    ``in_time(batch)`` says whether enough steps fit into the hours, where there is a limit.
    """
    dims = len(patch_size)
    largest = REFERENCE_BATCH[dims]
    fitting = max((size for size in range(1, largest + 1) if bytes_for(size) <= limit_bytes), default=0)
    timed = {}
    if in_time is not None:
        timed = {"fits_in_hours": max((size for size in range(1, fitting + 1) if in_time(size)), default=0)}
    most = min(fitting, *timed.values()) if timed else fitting
    covering = round(dataset_voxels * DATASET_FRACTION / math.prod(patch_size))
    batch_size = max(min(most, covering), MIN_BATCH)
    if covering < MIN_BATCH:
        reason = (
            f"The dataset is small: {MIN_BATCH} is the least that a batch needs, although it is over "
            f"{DATASET_FRACTION:.0%} of it."
        )
    elif most < MIN_BATCH:
        reason = f"{MIN_BATCH} is the least that a batch needs."
    elif covering < most:
        reason = f"{DATASET_FRACTION:.0%} of the dataset's voxels: larger batches would repeat the same images."
    elif most < fitting:
        reason = "As many patches as leave enough steps in the hours."
    elif fitting == largest:
        reason = f"Memory would allow more, but more steps with batches of {largest} serve better in the same time."
    else:
        reason = "As many patches as the memory holds."
    return batch_size, Decision(
        name="batch_size",
        value=batch_size,
        inputs={
            "fits_in_memory": fitting,
            **timed,
            "five_percent_of_dataset": covering,
            "largest": largest,
            "smallest": MIN_BATCH,
            "step_bytes": bytes_for(batch_size),
            "limit_bytes": limit_bytes,
        },
        rule=f"the least of: what fits, {DATASET_FRACTION:.0%} of the dataset's voxels, the reference batch "
        f"of {largest}; at least {MIN_BATCH}",
        reason=reason,
        source="nnU-Net 2.8.1; the upper bound is ours",
    )
