"""Label values of a dataset (any integers) and the label indices 0..n-1 that networks work with."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.images.image import smallest_type
from medmamba.plans.schema import Plan

LARGEST_TABLE = 1 << 16


def label_values(plan: Plan) -> NDArray[np.int64]:
    """The dataset's value for each label index; index 0 is the background."""
    return np.array([0, *(value for value in plan.labels.values() if value != 0)], dtype=np.int64)


def label_names(plan: Plan) -> list[str]:
    """Names of the foreground labels in the order of their indices 1, 2, ..."""
    return [name for name, value in plan.labels.items() if value != 0]


def ignore_index(plan: Plan) -> int:
    """Index of voxels that nothing is learnt from: one past the last label."""
    return len(plan.labels)


def encode(labels: NDArray[np.integer], plan: Plan) -> NDArray[np.int16]:
    """Dataset values to label indices; the plan's ignore value becomes :func:`ignore_index`."""
    values = label_values(plan)
    if plan.ignore_label is not None:
        values = np.append(values, plan.ignore_label)
    indices = index_in(values, labels)
    if (indices < 0).any():
        raise ValueError("the label map holds a value that the plan does not declare")
    return indices


def index_in(values: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.int16]:
    """Position in ``values`` of every voxel of a label map, -1 where it has none of them."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= LARGEST_TABLE or int(labels.min()) < 0:
        order = np.argsort(values)
        position = np.clip(np.searchsorted(values[order], labels), 0, len(values) - 1)
        return np.where(values[order][position] == labels, order[position], -1).astype(np.int16)
    table = np.full(high + 2, -1, dtype=np.int16)  # a look-up costs a fraction of a search; the last entry: above all
    table[values] = np.arange(len(values))
    return table[labels if int(labels.max()) <= high else np.minimum(labels, high + 1)]


def decode(indices: NDArray[Any], plan: Plan) -> NDArray[Any]:
    """Label indices (i, j, k) to dataset values, in the smallest type that holds them."""
    values = label_values(plan)
    if np.array_equal(values, np.arange(len(values))):
        return indices
    table = values.astype(smallest_type(0, int(values.max())))
    labels = np.empty_like(indices, dtype=table.dtype)
    for given, wanted in zip(indices, labels, strict=True):  # plane by plane: numpy looks up with eight bytes an index
        wanted[...] = table[given]
    return labels


def mean_voxel(indices: NDArray[np.integer], index: int) -> NDArray[np.float64]:
    """Mean voxel (i, j, k) of a label; NaN if absent. No list of voxels is made."""
    counts = [np.zeros(extent) for extent in indices.shape]
    for i, plane in enumerate(indices):
        here = plane == index
        counts[0][i] = here.sum()
        counts[1] += here.sum(1)
        counts[2] += here.sum(0)
    return np.array([np.arange(len(n)) @ n / (counts[0].sum() or math.nan) for n in counts])
