"""Labels of a plan: their names, values and the indices 0..n-1 of the networks. Bundles hold a copy of this file."""

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
