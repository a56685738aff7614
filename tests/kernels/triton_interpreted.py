"""Runs the Triton kernels in Triton's interpreter on the CPU and prints the errors against float64 as JSON.

    python triton_interpreted.py [scan | scan_all | scan_far | deform | deform_golden | ssd | ssd_all | operators]

A program of its own, because the interpreter is chosen before Triton is imported. Tiny sizes: it takes milliseconds per
position.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from scan_cases import float32, gated_in_segments, golden, outputs_and_gradients, relative, scan_inputs, ssd_inputs
from triton.runtime.interpreter import GridExecutor

from medmamba.kernels import deformable_conv, routed_scan
from medmamba.kernels.deformable import compiled as triton_deform
from medmamba.kernels.deformable.api import geometry_of
from medmamba.kernels.scan import triton_kernels
from medmamba.kernels.scan import triton_launch as triton_scan
from medmamba.kernels.scan.reference import ScanInputs
from medmamba.kernels.scan.triton_launch import routed_scan_triton, routed_scan_triton_backward
from medmamba.kernels.state_space_duality import triton_launch as triton_ssd
from medmamba.kernels.state_space_duality.api import ssd_reference
from medmamba.kernels.state_space_duality.triton_launch import ssd_triton, ssd_triton_backward

SCANS = {
    "routes, ragged": ((1, 11, 2, 5, 2), {}, {}),
    "one state": ((1, 9, 2, 3, 1), {}, {}),
    "one state, segments, spans": ((1, 21, 2, 3, 1), {"segments": True}, {"wanted_programs": 4}),
    "spans in parallel": ((1, 21, 1, 3, 2), {}, {"wanted_programs": 3}),
    "spans, not merged, x per route": ((2, 17, 2, 3, 2), {"merge": False, "per_route": True}, {"wanted_programs": 8}),
    "no softplus": ((1, 8, 1, 4, 2), {"softplus": False}, {}),
    "segments, spans": ((1, 21, 2, 3, 2), {"segments": True}, {"wanted_programs": 3}),
    "no decay, segments, spans": ((1, 21, 1, 3, 2), {"segments": True, "no decay": True}, {"wanted_programs": 3}),
    "two channel blocks": ((1, 6, 1, 19, 1), {}, {}),
}
# Together they have every option of a scan.
SOME_SCANS = (
    "routes, ragged",
    "one state, segments, spans",
    "spans, not merged, x per route",
    "no softplus",
    "two channel blocks",
)
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "routes", "initial_state")


def small_tiles(wanted_programs=1):
    triton_scan.FORWARD_TILE = triton_scan.BACKWARD_TILE = 2
    triton_scan.SAVED, triton_scan.BLOCK, triton_scan.ONE_BLOCK, triton_scan.CHAIN = 4, 16, 16, 2
    triton_scan.PROGRAMS, triton_scan.ENOUGH_PROGRAMS = wanted_programs, wanted_programs
    triton_scan.multiprocessors = lambda device: 1
    triton_ssd.CHUNK, triton_ssd.WIDEST_BLOCK = 16, 16


def scan(shape, options, sizes):
    small_tiles(**sizes)
    inputs = scan_inputs(*shape, per_route=options.get("per_route", False))
    softplus, merge = options.get("softplus", True), options.get("merge", True)
    if not softplus:
        inputs["dt"], inputs["dt_bias"] = 0.1 * inputs["dt"].abs(), 0.01 * inputs["dt_bias"].abs()
    if options.get("no decay"):
        inputs["A"] = torch.zeros_like(inputs["A"])
    if options.get("segments"):
        inputs["segments"] = torch.arange(shape[1]).div(4, rounding_mode="floor").expand(shape[0], -1) % 2
    truth = outputs_and_gradients(inputs, "reference", torch.float64, softplus=softplus, merge=merge)
    values = {name: value.float() if value.is_floating_point() else value.int() for name, value in inputs.items()}
    starts = []
    chain = triton_kernels.pass_spans

    class Watched:
        def __getitem__(self, grid):
            def run(A, sum_dt, values, *arguments, **constants):
                chain[grid](A, sum_dt, values, *arguments, **constants)
                starts.append(values.clone())

            return run

    triton_kernels.pass_spans = Watched()
    given = ScanInputs(**{"segments": None} | values, z=None, softplus=softplus, merge=merge)
    y, last, states, plain = triton_scan.forward(given)
    triton_kernels.pass_spans = chain
    generator = torch.Generator().manual_seed(99)
    dy, dlast = (torch.randn(v.shape, generator=generator, dtype=torch.float64).float() for v in (y, last))
    gradients = [g for g in triton_scan.backward(dy, dlast, given, states, plain) if g is not None]
    found = {"y": y, "last_state": last}
    found |= dict(zip([n for n in NAMES if n != "routes"], gradients, strict=True))
    if starts:  # the interpreter runs one span after the other: what a span would read beside the others is looked at
        every = -(-states.shape[2] // starts[0].shape[2])
        found["span starts"], truth["span starts"] = starts[0], states[:, :, ::every].double()
    return {name: relative(found[name], truth[name]) for name in truth}


def scan_far(states):
    """Errors of a scan whose last batch entry begins 2^31 elements into every large tensor.

    Only the first block of channels and the first visits are computed, so that address space is taken and no memory.
    """
    small_tiles()
    triton_scan.cdiv = lambda total, size: 1
    GridExecutor._restore_args_dev = lambda *arguments: None  # copies tensors onto themselves, and so touches them
    length, channels, block, visits = 1 << 18, 4096, 16, 4
    seen = torch.tensor([length - 1, 7, 0, length - 3])
    others = torch.ones(length, dtype=torch.bool).index_fill(0, seen, False)
    order = torch.cat([seen, others.nonzero().flatten()])
    given = float32(scan_inputs(1, visits, 1, block, states, per_route=True))
    for name in ("initial_state", "routes"):
        del given[name]
    dy = torch.linspace(-1, 1, visits * block).reshape(1, visits, 1, block)
    leaves = {name: value.double().requires_grad_() for name, value in given.items()}
    y = routed_scan(**leaves, merge=False, backend="reference")
    gradients = torch.autograd.grad(y, [leaves[name] for name in ("x", "dt", "B", "C")], dy.double())

    def spread(value):
        """Into a tensor of the whole length, and of all channels where it has channels."""
        whole = value.new_empty(3, length, 1, channels if value.shape[-1] == block else states)
        whole[-1, seen, :, : value.shape[-1]] = value[0]
        return whole

    def row(value):
        return torch.nn.functional.pad(
            value, (0, 0, 0, channels - block) if value.dim() == 3 else (0, channels - block)
        )

    large = {name: spread(given[name]) for name in ("x", "dt", "B", "C")}
    rows = {name: row(given[name]) for name in ("A", "D", "dt_bias")}
    absent = dict.fromkeys(("initial_state", "z", "segments"))
    what = ScanInputs(**large, **rows, **absent, routes=order.int().unsqueeze(0), softplus=True, merge=False)
    out, _last, saved, plain = triton_scan.forward(what)
    dx, ddt, _dA, dB, dC, *_rest = triton_scan.backward(spread(dy), None, what, saved, plain)
    found = {"y": out, "x": dx, "dt": ddt, "B": dB, "C": dC}
    truth = (y.detach(), *gradients)
    return {n: relative(v[-1, seen, :, : t.shape[-1]], t[0]) for (n, v), t in zip(found.items(), truth, strict=True)}


# batch, image, channels, options: ragged groups in 2D, stride and no centre in 3D, offsets far outside
DEFORMS = {
    "2d": (2, (3, 4), 6, {"groups": 2, "kernel_size": (2, 1)}),
    "3d": (
        1,
        (2, 3, 2),
        3,
        {"kernel_size": (1, 3, 1), "padding": (0, 1, 0), "remove_center": True, "stride": (1, 2, 1)},
    ),
    "far": (1, (3, 3), 2, {"kernel_size": (1, 2), "padding": 0, "dilation": 2, "offset_scale": 1e4}),
}


def deform(value, offset_mask, options, dout, truth):
    """Errors of output and gradients; truth: output, gradients of value and offset_mask."""
    geometry = geometry_of(value, **options)
    value, offset_mask, dout = value.float(), offset_mask.float(), dout.float()
    triton_deform.TILE_ELEMENTS, triton_deform.WIDEST_BLOCK, triton_deform.ENTRIES_AT_ONCE = 64, 4, 50
    out = triton_deform.triton_forward(value, offset_mask, geometry)
    found = (out, *triton_deform.triton_backward(dout, value, offset_mask, geometry))
    names = ("out", "value", "offset_mask")
    return {name: relative(*both) for name, *both in zip(names, found, truth, strict=True)}


def deform_case(batch, image, channels, options):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, *image, channels, generator=generator, dtype=torch.float64, requires_grad=True)
    geometry = geometry_of(value, **options)
    shape = (batch, *geometry.output, geometry.columns + 1)  # one column of padding
    offset_mask = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    out = deformable_conv(value, offset_mask, **options, backend="reference")
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(out, (value, offset_mask), dout)
    return deform(value.detach(), offset_mask.detach(), options, dout, (out.detach(), *gradients))


def deform_golden(case):
    tensors, told = golden("dcnv4_core.safetensors")
    options = {"padding": "pad", "groups": "group"}
    options = {n: told["cases"][case][options.get(n, n)] for n in ("kernel_size", "stride", "dilation", *options)}
    options |= {"offset_scale": told["cases"][case]["offset_scale"]}
    options |= {"remove_center": bool(told["cases"][case]["remove_center"])}
    truth = [tensors[f"{case}/{name}"] for name in ("output", "grad/input", "grad/offset_mask")]
    value, offset_mask, dout = (tensors[f"{case}/{name}"] for name in ("input", "offset_mask", "cotangent"))
    return deform(value, offset_mask, options, dout, truth)


# batch, L, heads, p, groups, n; strength of the decay
SSDS = {
    "ragged, blocks of n": ((1, 19, 1, 2, 1, 18), 0.3),
    "groups, blocks of p": ((1, 17, 2, 17, 2, 4), 0.3),
    "total decay": ((1, 33, 1, 3, 1, 4), 50.0),
    "zero decay after total decay": ((1, 20, 1, 2, 1, 2), 1e4),
    "hardly any decay": ((1, 33, 1, 3, 1, 4), 1e-6),
    "more chunks than are in flight": ((1, 146, 1, 2, 1, 2), 0.3),
}


def ssd_errors(values, dY, dlast, truth):
    small_tiles()
    values, dY, dlast = [value.float() for value in values], dY.float(), dlast.float()
    found = (*triton_ssd.forward(*values), *triton_ssd.backward(dY, dlast, *values))
    names = ("Y", "last", "X", "A", "B", "C", "initial_state")
    return {name: relative(*both) for name, *both in zip(names, found, truth, strict=True) if both[1] is not None}


def ssd(shape, decay):
    values = [value.requires_grad_() for value in ssd_inputs(*shape, decay=decay).values()]
    outputs = ssd_reference(*values)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in outputs]
    gradients = torch.autograd.grad(outputs, values, cotangents)
    truth = [v.detach() for v in (*outputs, *gradients)]
    return ssd_errors([v.detach() for v in values], *cotangents, truth)


def ssd_golden():
    tensors, told = golden("ssd_minimal.safetensors")
    found = {}
    for case in told["cases"]:
        told_state = f"{case}/initial_states" in tensors
        state = (
            tensors[f"{case}/initial_states"][:, 0] if told_state else torch.zeros_like(tensors[f"{case}/final_state"])
        )
        values = [*(tensors[f"{case}/{name}"] for name in "XABC"), state]
        truth = [tensors[f"{case}/{name}"] for name in ("output", "final_state", *(f"grad/{n}" for n in "XABC"))]
        truth.append(tensors[f"{case}/grad/initial_states"][:, 0] if told_state else None)
        cotangents = (tensors[f"{case}/cotangent"], tensors[f"{case}/cotangent_final_state"])
        found[case] = ssd_errors(values, *cotangents, truth)
    return found


def operators():
    """opcheck of the operators, with the interpreter in place of a device."""
    small_tiles()
    for operator in (routed_scan_triton, routed_scan_triton_backward, ssd_triton, ssd_triton_backward):
        operator.register_kernel("cpu", operator._init_fn)
    values = float32(scan_inputs(1, 3, 1, 2, 2))
    gated = gated_in_segments(values)
    gated |= {"z": gated["z"].float(), "routes": values["routes"].int(), "segments": gated["segments"].int()}
    for given in (gated, gated | {"z": None, "segments": None}):
        flags = {"softplus": True, "merge": True}
        check_operators(routed_scan_triton, routed_scan_triton_backward, ScanInputs(**given, **flags))
    found = gate_errors(gated)
    values["routes"] = torch.tensor([[0, 1, 5]])  # refused where the operator runs, also in a compiled graph
    with pytest.raises(ValueError, match="not a permutation"):
        routed_scan_triton(*(values[n].detach() for n in NAMES), None, None, True, True, False)
    values = float32(ssd_inputs(1, 3, 1, 2, 1, 2))
    check_operators(ssd_triton, ssd_triton_backward, list(values.values()))
    return found


def gate_errors(inputs):
    """Of y and the gradients of x and z, with a gate and segments."""
    results = []
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        leaves = {n: v.detach().to(dtype).requires_grad_() if v.is_floating_point() else v for n, v in inputs.items()}
        if backend == "triton":
            y, *_ = routed_scan_triton(*ScanInputs(**leaves, softplus=True, merge=True), True)
        else:
            y = routed_scan(**leaves, backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (leaves["x"], leaves["z"]))])
    return {name: relative(*both[::-1]) for name, *both in zip(("y", "x", "z"), *results, strict=True)}


def check_operators(operator, gradient_operator, inputs):
    save = (True,) if isinstance(inputs, ScanInputs) else ()
    floats = [isinstance(value, torch.Tensor) and value.is_floating_point() for value in inputs]
    leaves = [value.requires_grad_() if real else value for value, real in zip(inputs, floats, strict=True)]
    torch.library.opcheck(operator, (*leaves, *save))
    plain = [value.detach() if isinstance(value, torch.Tensor) else value for value in leaves]
    y, last, *saved = operator(*plain, *save)
    cotangents = torch.ones_like(y), torch.ones_like(last)
    torch.library.opcheck(gradient_operator, (*cotangents, *plain, *save, *saved))
    y, *_ = operator(*leaves, *save)
    (gradient,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


WHAT = {
    "operators": lambda: {"opcheck": operators()},
    "scan_far": lambda: {f"{states} states": scan_far(states) for states in (1, 2)},
    "ssd": lambda: {"zero decay": ssd(*SSDS["zero decay after total decay"])},
    "ssd_all": lambda: {name: ssd(*case) for name, case in SSDS.items()} | ssd_golden(),
    "scan": lambda: {name: scan(*SCANS[name]) for name in SOME_SCANS},
    "scan_all": lambda: {name: scan(*case) for name, case in SCANS.items()},
    "deform": lambda: {name: deform_case(*case) for name, case in DEFORMS.items()},
    "deform_golden": lambda: {case: deform_golden(case) for case in ("case0", "case1", "case2")},
}

if __name__ == "__main__":
    print(json.dumps(WHAT[sys.argv[1]]()))
