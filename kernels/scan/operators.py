"""A compiled selective scan as PyTorch operators: which inputs and outputs they have, and their shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.library import CustomOpDef

from medmamba.kernels.operators import contiguous, define_operator, needs_gradient
from medmamba.kernels.scan.reference import ScanInputs

_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}
_INPUTS = ", ".join(f"{_KINDS[kind]} {name}" for name, kind in get_type_hints(ScanInputs).items())


def output_shape(scan: ScanInputs) -> tuple[int, ...]:
    """Shape of y."""
    batch, length, K, channels = scan.dt.shape
    return (batch, length, channels) if scan.merge else (batch, length, K, channels)


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
            in `ScanInputs`; not read where the input is None or holds integers.
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
        shapes = (
            output_shape(scan),
            (scan.dt.shape[0], *scan.A.shape),
            saved_shape(scan.dt, scan.A) if save else (0,),
            output_shape(scan) if save and scan.z is not None else (0,),
        )
        return tuple(scan.dt.new_empty(shape, dtype=torch.float32) for shape in shapes)

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
