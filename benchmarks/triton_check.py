"""Ahead-of-time compilation of the Triton kernels, without a device: ``python benchmarks/triton_check.py``.

Compiles every kernel for NVIDIA and AMD and reports processor seconds and, for NVIDIA, what the assembler says:
registers, bytes of stack (spills), and instructions and shuffles per update of the scan in its longest inner loop.
The compilers come with the triton package.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TARGETS = {f"sm_{number}": ("cuda", number, 32) for number in (75, 80, 86, 89, 90, 100, 120)}
TARGETS["gfx942"] = ("hip", "gfx942", 64)


@dataclass(frozen=True)
class Kernel:
    """What a kernel is compiled with: sizes are 32 bit, pointers are to float32 unless said otherwise."""

    module: str
    constants: dict[str, object]
    integers: tuple[str, ...]
    half: tuple[str, ...]  # inputs that may be in half precision
    kinds: dict[str, str]  # of the other arguments that are not pointers to float32
    warps: int
    multiples: tuple[str, ...] = ()  # sizes that the launcher finds divisible by 16; pointers are
    exponentials: int = 0  # at least so many in the loop whose instructions are counted; 0: none is


def kernels() -> dict[str, Kernel]:
    """Every kernel, as it is launched."""
    return {**_scan_kernels(), **_deform_kernels(), **_ssd_kernels()}


def _scan_kernels() -> dict[str, Kernel]:
    from medmamba.kernels.scan import triton_launch as launch

    constants: dict[str, object] = {"SOFTPLUS": True, "KEEP_OUTPUT": True}
    constants |= {"X_PER_ROUTE": False, "DY_PER_ROUTE": False, "ADJOINT": False, "resets": None}
    constants["TOGETHER"] = launch.CHAIN
    integers = ("length", "channels", "N", "K", "span_saves", "saves", "spans", "blocks")
    scans = ["scan_forward", "scan_forward_one", "scan_backward", "scan_backward_one"]
    half, kinds = ("x", "dt", "B", "C"), {"routes": "*i32", "resets": "*i1"}

    def kernel(name: str, channels: int = 64, segments: bool = False, **changes: object) -> Kernel:
        one = name.endswith("_one")
        block = launch.block_of(channels, 1 if one else 16)
        tile = launch.BACKWARD_TILE if "backward" in name else launch.FORWARD_TILE
        all_constants = constants | {"BD": block, "T": tile, "M": launch.SAVED // tile, "ONE": one} | changes
        hints = ("channels",) if one else ()
        if segments:
            del all_constants["resets"]
        return Kernel("scan.triton_kernels", all_constants, integers, half, kinds, launch.WARPS, hints, tile)

    found = {name: kernel(name) for name in [*scans, "pass_spans", "adjoint_spans"]}
    found["pass_spans adjoint"] = kernel("pass_spans", ADJOINT=True)
    found |= {f"{name} narrow": kernel(name, 32) for name in ("scan_forward", "scan_backward", "adjoint_spans")}
    return found | {f"{name} segments": kernel(name, segments=True) for name in scans}


def _deform_kernels() -> dict[str, Kernel]:
    from medmamba.kernels.deformable import compiled as launch

    BP, BC = launch.block_of(16)
    common: dict[str, object] = {"GC": 16, "BP": BP, "BC": BC, "BE": 256, "REMOVE_CENTER": False}
    integers = ("positions", "channels", "columns", "groups", "slices", "first", "iz", "iy", "ix", "oy", "ox")
    half = ("value", "offset_mask")
    found = {}
    for dims in (2, 3):
        kernel, padding = ((1, 3, 3), (0, 1, 1)) if dims == 2 else ((3, 3, 3), (1, 1, 1))
        constants = common | {"KERNEL": kernel, "PADDING": padding, "STRIDE": (1, 1, 1), "DILATION": (1, 1, 1)}
        constants |= {"TAPS": 3**dims, "DIMS": dims}
        for name in ("deform_forward", "deform_offset_gradient", "tap_cells", "deform_image_gradient"):
            kinds = {"scale": "fp32", "order": "*i64", "begins": "*i64", "cells": "*i32"}
            found[f"{name} {dims}D"] = Kernel(
                "deformable.triton_kernels", constants, integers, half, kinds, launch.WARPS, ("channels",)
            )
    return found


def _ssd_kernels() -> dict[str, Kernel]:
    from medmamba.kernels.state_space_duality import triton_launch as launch

    block, small = launch.block_of(64), launch.SMALL_BLOCK
    constants: dict[str, object] = {"Q": launch.CHUNK, "BE": launch.ELEMENTS, "PRECISION": "tf32x3"}
    constants |= dict.fromkeys(("BP", "BN", "BO"), block) | {"BI": small, "ADJOINT": False, "SWAPPED": False}
    integers = ("length", "heads", "groups", "P", "N", "chunks")
    half = ("X", "B", "C", "V", "M", "query", "key", "value")

    def kernel(**changes: object) -> Kernel:
        warps = launch.WARPS if "BE" not in changes else 4
        return Kernel("state_space_duality.triton_kernels", constants | changes, integers, half, {}, warps, ("P", "N"))

    found = {
        "ssd_states": kernel(),
        "ssd_pass": kernel(BE=launch.ELEMENTS),
        "ssd_decay_gradient": kernel(BP=small, BN=small),
    }
    uses = {"Y": (False, False), "dC": (False, True), "dX": (True, False), "dB": (True, True)}
    return found | {f"ssd_outputs {name}": kernel(ADJOINT=a, SWAPPED=s) for name, (a, s) in uses.items()}


@dataclass(frozen=True)
class Compiled:
    """What came out for one kernel and target; the last four are None where the assembler does not tell."""

    kernel: str
    target: str
    dtype: str
    seconds: float
    registers: int | None
    stack_bytes: int | None
    instructions_per_update: float | None
    shuffles_per_update: float | None


def compile_kernel(kernel: str, target: str, dtype: str = "fp32", **changes: object) -> Compiled:
    """Compile one kernel for one target. dtype (fp32, bf16, fp16) is that of the large inputs; changes: constants."""
    compiled, seconds, what = _compile(kernel, target, dtype, **changes)
    told = _assembly(compiled.asm["cubin"], what.exponentials) if "cubin" in compiled.asm else (None,) * 4
    return Compiled(kernel, target, dtype, seconds, *told)


def _processor_seconds() -> float:
    """Of this process and the compilers that it has started: the same on a busy machine."""
    return sum(os.times()[:4])


def _compile(kernel: str, target: str, dtype: str, **changes: object) -> tuple[Any, float, Kernel]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    what = kernels()[kernel]
    function = getattr(import_module(f"medmamba.kernels.{what.module}"), kernel.split()[0])
    kinds, constants, hints = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        if name in what.constants:
            kinds[name] = "constexpr"
            constants[(index,)] = (what.constants | changes)[name]
            if name == "PRECISION" and TARGETS[target][0] == "hip":
                constants[(index,)] = "ieee"
        elif name in what.integers:
            kinds[name] = "i32"
        else:
            kinds[name] = what.kinds.get(name, f"*{dtype}" if name in what.half else "*fp32")
        if kinds[name].startswith("*") or name in what.multiples:
            hints[(index,)] = [["tt.divisibility", 16]]
    start = _processor_seconds()
    source = ASTSource(function, kinds, constants, hints)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": what.warps})
    return compiled, _processor_seconds() - start, what


def _assembly(cubin: bytes, exponentials: int) -> tuple[int | None, int | None, float | None, float | None]:
    """Registers, stack bytes, instructions and shuffles per update, by the disassembler that Triton brings along."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        listing = subprocess.run([tools / "nvdisasm", file.name], capture_output=True, text=True, check=True).stdout
    registers = _number(r"REG:(\d+)", usage.stdout)
    stack = _number(r"STACK:(\d+)", usage.stdout)
    # The loop over states: one exponential per update, several states at a time where it is unrolled.
    instructions, updates, shuffles = max(_loops(listing), default=(0, 0, 0))
    if not 0 < exponentials <= updates:
        return registers, stack, None, None
    return registers, stack, instructions / updates, shuffles / updates


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return None if found is None else int(found[1])


def _loops(listing: str) -> list[tuple[int, int, int]]:
    """Instructions, exponentials and shuffles of every innermost loop in a disassembly."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(found[1])
    spans = []
    for end, instruction in enumerate(code):
        branch = re.search(r"BRA\S*\s.*`\((\.L_x_\d+)\)", instruction)
        if branch and labels.get(branch[1], end) < end:
            spans.append((labels[branch[1]], end))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    found = (code[start : end + 1] for start, end in inner)
    return [(len(body), *(sum(name in line for line in body) for name in ("MUFU.EX2", "SHFL"))) for body in found]


def main() -> None:
    """Print a table of all kernels and targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--target", choices=list(TARGETS), help="one target instead of all")
    arguments = parser.parse_args()
    print(f"{'kernel':28}{'target':8}{'dtype':6}{'s':>6}{'regs':>6}{'stack':>6}{'instr/update':>14}{'shfl/update':>13}")
    for target in [arguments.target] if arguments.target else TARGETS:
        for kernel in (name for name in kernels() if arguments.only in name):
            for dtype in ("fp32", "bf16"):
                c = compile_kernel(kernel, target, dtype)
                registers, stack = ("" if v is None else str(v) for v in (c.registers, c.stack_bytes))
                counts = (c.instructions_per_update, c.shuffles_per_update)
                per, shuffles = ("" if v is None else f"{v:.1f}" for v in counts)
                row = f"{kernel:28}{target:8}{dtype:6}{c.seconds:6.1f}{registers:>6}{stack:>6}{per:>14}{shuffles:>13}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
