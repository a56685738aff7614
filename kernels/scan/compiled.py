"""The compiled selective scan as PyTorch operators, and its C++ backend `medmamba::routed_scan_cpp` (float32 tensors).

The library is loaded at the first call, never at import. The Triton backend: `triton_launch.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.library import CustomOpDef

from medmamba.kernels import library as lib
from medmamba.kernels.operators import contiguous, define_operator, needs_gradient, new_gradients
from medmamba.kernels.scan.reference import ScanInputs

_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}
_INPUTS = ", ".join(f"{_KINDS[kind]} {name}" for name, kind in get_type_hints(ScanInputs).items())

# Sizes that csrc/abi.h fixes: positions per saved state, and the padding of channels in `saved_states`.
TILE = 32
PAD = 16


def new_outputs(scan: ScanInputs, saved_shape: tuple[int, ...] | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors for y, the last state, the saved states and y before the gate, in float32; empty if not saved."""
    batch, length, K, channels = scan.dt.shape
    y_shape = (batch, length, channels) if scan.merge else (batch, length, K, channels)
    plain_shape = (0,) if saved_shape is None or scan.z is None else y_shape
    shapes = (y_shape, (batch, *scan.A.shape), saved_shape or (0,), plain_shape)
    y, last_state, saved_states, plain = (scan.dt.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return y, last_state, saved_states, plain


def scan_operators(
    name: str,
    device: str,
    forward: Callable[[ScanInputs, bool], tuple[Tensor, Tensor, Tensor, Tensor]],
    backward: Callable[[Tensor, Tensor | None, ScanInputs, Tensor, Tensor], Sequence[Tensor | None]],
    saved_shape: Callable[[Tensor, Tensor], tuple[int, ...]],
) -> tuple[CustomOpDef, CustomOpDef]:
    """`medmamba::NAME`, which takes `ScanInputs` and the flag `save`, and `medmamba::NAME_backward`.

    What a backend computes, on contiguous tensors:
        forward: from the inputs and the flag `save` y, the last state, the saved states and y before the gate; the
            latter two are empty without the flag, and y before the gate without a gate as well.
        backward: from dy, dlast_state, the inputs, the saved states and y before the gate the gradients of the tensors
            in `ScanInputs`; ignored where the input is None or of integers.
        saved_shape: shape of the saved states from dt and A.
    """

    def run_forward(*arguments: Any) -> tuple[Tensor, ...]:
        *inputs, save = arguments
        return forward(ScanInputs(*inputs), save)

    def run_backward(dy: Tensor, dlast_state: Tensor | None, *arguments: Any) -> Sequence[Tensor | None]:
        *inputs, save, saved_states, plain = arguments
        if not save:
            raise RuntimeError("routed_scan was called with save=False, but a gradient is needed.")
        return backward(dy, dlast_state, ScanInputs(*inputs), saved_states, plain)

    def shapes(*arguments: Any) -> tuple[Tensor, ...]:
        *inputs, save = arguments
        scan = ScanInputs(*inputs)
        return new_outputs(scan, saved_shape(scan.dt, scan.A) if save else None)

    return define_operator(
        "routed_scan",
        name,
        f"{_INPUTS}, bool save",
        run_forward,
        run_backward,
        shapes,
        devices=device,
        outputs=4,
        kept=2,
    )


def call_operator(operator: CustomOpDef, scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state; states are saved only if a gradient may be needed."""
    scan = ScanInputs._make(contiguous(scan))
    y, last_state, *_ = operator(*scan, needs_gradient(scan))
    return y, last_state


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
    outputs = new_outputs(scan, _saved_shape(scan.dt, scan.A) if save else None)
    arguments = _arguments(scan)
    arguments.y, arguments.last_state, arguments.saved_states, arguments.plain = map(_at, outputs)
    lib.run("routed_scan", "mm_scan_forward", arguments)
    return outputs


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
