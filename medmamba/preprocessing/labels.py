"""Label values of a dataset (any integers) and the label indices 0..n-1 that networks work with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medmamba.plans.schema import Plan


def label_values(plan: Plan) -> NDArray[np.int64]:
    """The dataset's value for each label index; index 0 is the background."""
    values = list(plan.labels.values())
    return np.array([0, *(value for value in values if value != 0)], dtype=np.int64)


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
    order = np.argsort(values)
    position = np.searchsorted(values[order], labels)
    position = np.clip(position, 0, len(values) - 1)
    if not (values[order][position] == labels).all():
        raise ValueError("the label map holds a value that the plan does not declare")
    return order[position].astype(np.int16)


def decode(indices: NDArray[np.integer], plan: Plan) -> NDArray[np.int64]:
    """Label indices to dataset values."""
    return label_values(plan)[indices]
