"""Comparisons of golden files that hold operators and index tables rather than modules.

Such a file is recognised by the names of its tensors. Every comparison is (kind, error, allowed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from medmamba.errors import unknown_name
from medmamba.kernels import deformable_conv, selective_scan, ssd_chunked
from medmamba.networks.density import density_peaks, key_tokens
from medmamba.networks.planned.mhs_vm import HEADS, fuse_routes
from medmamba.networks.routes import routes

from .golden import Golden

Found = tuple[str, float, float]
Tensors = dict[str, Tensor]

EXACT = 0.0
OPERATOR64, SCAN32_OUTPUT, SCAN32_GRADIENT = 1e-10, 5e-6, 2e-5  # the scan's and the fusion's files store float64
SECOND64_OUTPUT, SECOND64_GRADIENT = 1e-6, 1e-6  # the second layout stores float32
SECOND32_OUTPUT, SECOND32_GRADIENT = 1e-5, 1e-3


def operator_checks(golden: Golden) -> list[Found] | None:
    """The comparisons of a file without a model; None if it has one. Raises ConfigError for an unknown operator."""
    if golden.model:
        return None
    if "salt" in golden.info:
        return None
    cases = golden.cases()
    sample = set(next(iter(cases.values())))
    for known, check in _OPERATORS.items():
        if set(known.split()) <= sample:
            return [found for name, case in cases.items() for found in check(name, case, _case_info(golden, name))]
    raise unknown_name("golden operator with tensors", " ".join(sorted(sample)), list(_OPERATORS))


def _case_info(golden: Golden, case: str) -> dict[str, Any]:
    info = golden.info.get("cases", golden.info)
    found = info.get(case, {}) if isinstance(info, dict) else {}
    return found if isinstance(found, dict) else {}


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.detach().double() - expected.double()).norm().item()
    return difference / (expected.double().norm().item() or 1.0)


def _gradients(
    output: Tensor, case: Tensors, arguments: Tensors, label: str, allowed: float, *, extra: Tensor | float = 0.0
) -> Iterator[Found]:
    """Gradients of sum(output * cotangent) with respect to every argument the file has one of."""
    loss = (output * case["cotangent"].to(output.dtype)).sum() + extra
    loss.backward()
    for name, argument in arguments.items():
        if f"grad/{name}" in case:
            grad = argument.grad if argument.grad is not None else torch.zeros_like(argument)
            yield f"{label} gradient", _relative(grad, case[f"grad/{name}"]), allowed


def _leaves(case: Tensors, names: tuple[str, ...], dtype: torch.dtype) -> Tensors:
    return {n: case[n].to(dtype, copy=True).requires_grad_() for n in names if n in case}


def _selective_scan(name: str, case: Tensors, info: dict[str, Any]) -> Iterator[Found]:
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    for dtype, out, grad in (
        (torch.float64, OPERATOR64, OPERATOR64),
        (torch.float32, SCAN32_OUTPUT, SCAN32_GRADIENT),
    ):
        label = str(dtype).removeprefix("torch.")
        a = _leaves(case, names, dtype)
        output, last = selective_scan(
            a["u"],
            a["delta"],
            a["A"],
            a["B"],
            a["C"],
            a.get("D"),
            a.get("z"),
            a.get("delta_bias"),
            delta_softplus=info["delta_softplus"],
            return_last_state=True,
        )
        yield f"{label} output", _relative(output, case["output"]), out
        yield f"{label} last state", _relative(last, case["last_state"]), out
        yield from _gradients(output, case, a, label, grad)


def _fusion(name: str, case: Tensors, info: dict[str, Any]) -> Iterator[Found]:
    a = _leaves(case, ("input",), torch.float64)
    output = fuse_routes(a["input"], info["t"], dim=1)
    yield "float64 output", _relative(output, case["output"]), OPERATOR64
    yield from _gradients(output, case, a, "float64", OPERATOR64)


def _duality(name: str, case: Tensors, info: dict[str, Any]) -> Iterator[Found]:
    for dtype, out, grad in (
        (torch.float64, SECOND64_OUTPUT, SECOND64_GRADIENT),
        (torch.float32, SECOND32_OUTPUT, SECOND32_GRADIENT),
    ):
        label = str(dtype).removeprefix("torch.")
        a = _leaves(case, ("X", "A", "B", "C", "initial_states"), dtype)
        start = a["initial_states"].squeeze(1) if "initial_states" in a else None
        output, final = ssd_chunked(
            *(a[n] for n in "XABC"), chunk=info["block_len"], initial_state=start, return_last_state=True
        )
        yield f"{label} output", _relative(output, case["output"]), out
        yield f"{label} final state", _relative(final, case["final_state"]), out
        extra = (final * case["cotangent_final_state"].to(dtype)).sum()
        yield from _gradients(output, case, a, label, grad, extra=extra)


def _deformable(name: str, case: Tensors, info: dict[str, Any]) -> Iterator[Found]:
    for dtype, out, grad in (
        (torch.float64, SECOND64_OUTPUT, SECOND64_GRADIENT),
        (torch.float32, SECOND32_OUTPUT, SECOND32_GRADIENT),
    ):
        label = str(dtype).removeprefix("torch.")
        a = _leaves(case, ("input", "offset_mask"), dtype)
        output = deformable_conv(
            a["input"],
            a["offset_mask"],
            kernel_size=info["kernel_size"],
            stride=info["stride"],
            padding=info["pad"],
            dilation=info["dilation"],
            groups=info["group"],
            offset_scale=info["offset_scale"],
            remove_center=bool(info["remove_center"]),
        )
        yield f"{label} output", _relative(output, case["output"]), out
        yield from _gradients(output, case, a, label, grad)


def _density(name: str, case: Tensors, info: dict[str, Any]) -> Iterator[Found]:
    tokens = case["input"].double().numpy()
    density, to_denser = (torch.from_numpy(found) for found in density_peaks(tokens))
    gamma = density * to_denser
    for key, found in (("density", density), ("min_dist_to_higher", to_denser), ("gamma", gamma)):
        yield "float64 output", _relative(found, case[key]), SECOND64_OUTPUT
    yield "ranking", float((torch.argsort(-gamma, stable=True) != case["ranking"]).sum()), EXACT
    chosen = torch.from_numpy(key_tokens(tokens, info.get("k", len(case["selected"]))))
    yield "selection", float((chosen != case["selected"]).sum()), EXACT


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("x"))


def _table(found: Tensor, case: Tensors, prefix: str = "") -> Iterator[Found]:
    """An order and its inverse, element by element."""
    expected = case[prefix + "order"]
    wrong = (found != expected).sum().item() if found.shape == expected.shape else float("inf")
    yield "route", float(wrong), EXACT
    yield "inverse", float((torch.argsort(found.long(), dim=-1) != case[prefix + "inverse"]).sum()), EXACT


def _mhs_routes(name: str, case: Tensors, info: dict[str, Any]) -> Iterator[Found]:
    for route in sorted({key.partition("/")[0] for key in case}):
        yield from _table(routes(HEADS[route[0]], _shape(name))[2 * int(route[1:])], case, route + "/")


def _route_table(name: str, case: Tensors, info: dict[str, Any]) -> Iterator[Found]:
    if name.startswith("N"):  # N8: the four snakes of an 8 x 8 grid
        yield from _table(routes("continuous", (int(name[1:]),) * 2), case)
    else:  # 2x3x4: the four rotary-major orders, of which ours is each followed by its reverse
        yield from _table(routes("rotary", _shape(name))[::2], case)


# Names of tensors that a case of the kind must have -> its comparisons.
_OPERATORS: dict[str, Callable[[str, Tensors, dict[str, Any]], Iterator[Found]]] = {
    "u delta A B C output last_state": _selective_scan,
    "X A B C output final_state": _duality,
    "input offset_mask output": _deformable,
    "density gamma ranking selected": _density,
    "order inverse": _route_table,
    "C0/order Z1/inverse": _mhs_routes,
    "input output cotangent": _fusion,
}
