"""The C++ backend of the selective scan: `medmamba::routed_scan_cpp` and its backward pass, on float32 tensors.

The library is loaded at the first call, never at import.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medmamba.kernels import library as lib
from medmamba.kernels.operators import new_gradients
from medmamba.kernels.scan.operators import call_operator, output_shape, scan_operators
from medmamba.kernels.scan.reference import ScanInputs

# Sizes that csrc/abi.h fixes: positions per saved state, and the padding of channels in `saved_states`.
TILE = 32
PAD = 16


def _at(tensor: Tensor | None) -> int | None:
    """The address of the data; None where there is none."""
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _arguments(scan: ScanInputs) -> lib.ScanArguments:
    *tensors, softplus, merge = scan
    return lib.ScanArguments(
        *(*scan.dt.shape, scan.A.shape[-1]),
        *(softplus, merge, scan.x.dim() == 4, torch.get_num_threads()),
        *map(_at, tensors),
    )


def _saved_shape(dt: Tensor, A: Tensor) -> tuple[int, ...]:
    batch, length, K, channels = dt.shape
    return (batch, K, (length + TILE - 1) // TILE, (channels + PAD - 1) // PAD * PAD, A.shape[-1])


def _forward(scan: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = scan.dt.new_empty(output_shape(scan))
    last_state = scan.dt.new_empty((scan.dt.shape[0], *scan.A.shape))
    saved_states = scan.dt.new_empty(_saved_shape(scan.dt, scan.A) if save else (0,))
    plain = scan.dt.new_empty(y.shape if save and scan.z is not None else (0,))
    arguments = _arguments(scan)
    arguments.y, arguments.last_state = _at(y), _at(last_state)
    arguments.saved_states, arguments.plain = _at(saved_states), _at(plain)
    lib.run("routed_scan", "mm_scan_forward", arguments)
    return y, last_state, saved_states, plain


def _backward(
    dy: Tensor, dlast_state: Tensor | None, scan: ScanInputs, saved_states: Tensor, plain: Tensor
) -> list[Tensor]:
    gradients = new_gradients(scan[:-2])
    of_inputs = {f"d{name}": _at(gradient) for name, gradient in zip(scan._fields, gradients, strict=False)}
    del of_inputs["droutes"], of_inputs["dsegments"]
    arguments = lib.ScanGradients(_arguments(scan), _at(dy), _at(dlast_state), **of_inputs)
    arguments.s.saved_states, arguments.s.plain = _at(saved_states), _at(plain)
    lib.run("routed_scan", "mm_scan_backward", arguments)
    return gradients


routed_scan_cpp, routed_scan_cpp_backward = scan_operators("routed_scan_cpp", "cpu", _forward, _backward, _saved_shape)


def run(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state, from float32 tensors on the CPU."""
    return call_operator(routed_scan_cpp, scan)
