"""Axis order of the plan: the coarsest axis, or the flat one, comes first.

A 2D configuration leaves out plan axis 0, and an anisotropic 3D network treats it gently, so it must be the slice axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmamba.plans.schema import Decision


def coarsest_first(target_spacing: Sequence[float]) -> list[int]:
    """Axes with the coarsest in front and the others in their own order (the first of equals counts). Source: nnU-Net.

    >>> coarsest_first((0.6, 0.6, 3.7))
    [2, 0, 1]
    """
    return _in_front(int(np.argmax(target_spacing)))


def axis_order(target_spacing: Sequence[float], shapes_after_crop: np.ndarray) -> tuple[list[int], Decision]:
    """Canonical array axis that becomes plan axis 0, 1, 2."""
    median_shape = np.median(shapes_after_crop, axis=0).tolist()
    if 1 not in median_shape:
        order = coarsest_first(target_spacing)
        isotropic = max(target_spacing) == min(target_spacing)
        reason = (
            "The spacing is the same along all axes, so the axes stay in their order."
            if isotropic
            else f"Axis {'ijk'[order[0]]} has the coarsest spacing ({max(target_spacing):g} mm): it is the slice axis."
        )
    else:
        flat = median_shape.index(1)
        order = _in_front(flat)
        reason = f"The images have one voxel along axis {'ijk'[flat]}: it is the slice axis, whatever its spacing."
    return order, Decision(
        name="axis_order",
        value=order,
        inputs={"target_spacing": list(target_spacing), "median_shape_after_crop": median_shape},
        rule="the flat axis first, else the coarsest axis first; the others keep their order",
        reason=reason,
        source="nnU-Net 2.8.1, transpose_forward; a flat axis that is not the coarsest is our addition",
    )


def _in_front(first: int) -> list[int]:
    return [first, *(axis for axis in range(3) if axis != first)]
