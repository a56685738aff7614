"""Checks of the operators' arguments: real floating point tensors on one device, routes that are permutations."""

import re

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_permutations = WeakTensorKeyDictionary()  # tables that were found right, and their versions at that time


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
        if integer.dtype == torch.bool or integer.dtype.is_floating_point or integer.is_complex():
            raise TypeError(f"{name} must be integers, they are {integer.dtype}.")


def check_shapes(named: dict[str, Tensor | None], axes: dict[str, str], sizes: dict[str, int], why: str = "") -> None:
    """Raises ValueError for a tensor without its `axes`, such as "(batch, L)", of these `sizes`; None is skipped.

    Of alternatives, "(batch, L) or (batch, L, K)", only the first is checked.
    """
    for name, words in axes.items():
        value, shape = named[name], tuple(sizes[axis] for axis in re.findall(r"\w+", words.split(" or ")[0]))
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name} must be {words} = {shape}{why}, it is {tuple(value.shape)}.")


def check_permutations(routes: Tensor | None) -> None:
    """Raises ValueError unless every row of (K, L) is a permutation; None is raster order.

    A table is checked once, and again after it was written to: on a device, a check waits for all work before it.
    """
    if routes is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return  # the values are not known while a graph is made
    version = None if routes.is_inference() else routes._version
    if version is not None and _permutations.get(routes) == version:
        return
    positions = torch.arange(routes.shape[1], device=routes.device, dtype=routes.dtype)
    wrong = (routes.sort(1).values != positions).any(1).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"Row {int(wrong[0])} of `routes` is not a permutation of 0..{routes.shape[1] - 1}: "
            "every route must visit every position once."
        )
    if version is not None:
        _permutations[routes] = version
