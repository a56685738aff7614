"""What every operator asks of its arguments before anything else: real floating point tensors on one device."""

from __future__ import annotations

import torch
from torch import Tensor


def check_kinds(named: dict[str, Tensor | None], integers: dict[str, Tensor | None] | None = None) -> None:
    """Raises TypeError or ValueError that names the argument; None is left out, and `integers` may be anywhere."""
    given = {name: value for name, value in named.items() if value is not None}
    first, device = next((name, value.device) for name, value in given.items())
    for name, value in given.items():
        if value.is_complex():
            raise TypeError(f"{name} is {value.dtype}: complex numbers are not supported, use real ones.")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, it is {value.dtype}.")
        if value.device != device:
            raise ValueError(f"{name} is on {value.device} and {first} on {device}: bring them to one device.")
    for name, integer in (integers or {}).items():
        if integer is None:
            continue
        if integer.is_meta and device.type != "meta":
            raise ValueError(f"{name} has no data: it is on meta and {first} on {device}.")
        if integer.is_floating_point() or integer.is_complex() or integer.dtype == torch.bool:
            raise TypeError(f"{name} must be integers, they are {integer.dtype}.")
