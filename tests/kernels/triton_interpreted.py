"""Runs the Triton kernels in Triton's interpreter on the CPU and prints the errors against the float64 loop as JSON.

A program of its own, because the interpreter is chosen before Triton is imported. Tiny sizes: it takes milliseconds per
position.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from scan_cases import outputs_and_gradients, relative, scan_inputs

from medmamba.kernels import triton_scan

CASES = {
    "routes, ragged": ((1, 11, 2, 5, 2), {}, {}),
    "one state": ((1, 9, 2, 3, 1), {}, {}),
    "spans in parallel": ((1, 21, 1, 3, 2), {}, {"WANTED_PROGRAMS": 3}),
    "spans, not merged, x per route": ((2, 17, 2, 3, 2), {"merge": False, "per_route": True}, {"WANTED_PROGRAMS": 8}),
    "no softplus": ((1, 8, 1, 4, 2), {"softplus": False}, {}),
    "two channel blocks": ((1, 6, 1, 19, 1), {}, {}),
}
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "routes", "initial_state")


def run(shape, options, sizes):
    triton_scan.TILE, triton_scan.TILES_PER_SAVE, triton_scan.BLOCK = 2, 2, 16
    triton_scan.WANTED_PROGRAMS = sizes.get("WANTED_PROGRAMS", 1)
    inputs = scan_inputs(*shape, per_route=options.get("per_route", False))
    softplus, merge = options.get("softplus", True), options.get("merge", True)
    if not softplus:
        inputs["dt"], inputs["dt_bias"] = 0.1 * inputs["dt"].abs(), 0.01 * inputs["dt_bias"].abs()
    truth = outputs_and_gradients(inputs, "reference", torch.float64, softplus=softplus, merge=merge)
    values = [inputs[name].float() if name != "routes" else inputs[name].int() for name in NAMES]
    y, last, states = triton_scan.forward(*values, softplus, merge)
    generator = torch.Generator().manual_seed(99)
    dy, dlast = (torch.randn(v.shape, generator=generator, dtype=torch.float64).float() for v in (y, last))
    gradients = triton_scan.backward(dy, dlast, *values, states, softplus, merge)
    found = {"y": y, "last_state": last}
    found |= dict(zip([n for n in NAMES if n != "routes"], gradients, strict=True))
    return {name: relative(found[name], truth[name]) for name in truth}


if __name__ == "__main__":
    print(json.dumps({name: run(*case) for name, case in CASES.items() if len(sys.argv) < 2 or name in sys.argv[1:]}))
