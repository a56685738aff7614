"""Ahead-of-time compilation of the Triton kernels, without a device: ``python -m medmamba.kernels.triton_check``.

Compiles every kernel for NVIDIA (sm_80, sm_90) and AMD (gfx942) and reports, for NVIDIA, what the assembler says:
registers, bytes of stack (spills) and instructions per update in the longest loop over states. The compilers come with
the triton package.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

KERNELS = ("scan_forward", "scan_backward", "pass_spans", "adjoint_spans", "pass_adjoints")
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
_INTEGERS = {"length", "channels", "N", "K", "span_saves", "saves", "spans", "blocks"}
_HALF = {"x", "dt", "B", "C"}


@dataclass(frozen=True)
class Compiled:
    """What came out for one kernel and target; the last three are None where the assembler does not tell."""

    kernel: str
    target: str
    dtype: str
    seconds: float
    registers: int | None
    stack_bytes: int | None
    instructions_per_update: float | None


def compile_kernel(kernel: str, target: str, dtype: str = "fp32", merged: bool = True) -> Compiled:
    """Compile one kernel for one target. dtype (fp32, bf16, fp16) is that of x, dt, B and C."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from medmamba.kernels import triton_kernels, triton_scan

    flags: dict[str, object] = {name: True for name in ("SOFTPLUS", "HAS_D", "HAS_BIAS", "HAS_ORDER", "KEEP_OUTPUT")}
    flags |= {name: True for name in ("HAS_INITIAL", "HAS_DLAST", "HAS_DINITIAL")}
    flags |= {"X_PER_ROUTE": not merged, "DY_PER_ROUTE": not merged}
    flags |= {"T": triton_scan.TILE, "M": triton_scan.TILES_PER_SAVE, "BD": triton_scan.BLOCK}
    function = getattr(triton_kernels, kernel)
    kinds, constants = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in flags:
            kinds[name] = "constexpr"
            constants[(index,)] = flags[name]
        elif name in _INTEGERS:
            kinds[name] = "i32"
        else:
            kinds[name] = "*i32" if name == "order" else f"*{dtype}" if name in _HALF else "*fp32"
    start = time.perf_counter()
    options = {"num_warps": triton_scan.WARPS}
    compiled = triton.compile(
        ASTSource(function, kinds, constants), target=GPUTarget(*TARGETS[target]), options=options
    )
    seconds = time.perf_counter() - start
    told = _assembly(compiled.asm["cubin"], triton_scan.TILE) if "cubin" in compiled.asm else (None, None, None)
    return Compiled(kernel, target, dtype, seconds, *told)


def _assembly(cubin: bytes, tile: int) -> tuple[int | None, int | None, float | None]:
    """Registers, stack bytes and instructions per update of a cubin, by the disassembler that Triton brings along."""
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
    main = max(_loops(listing), default=(0, 0))
    per_update = main[0] / main[1] if main[1] >= tile else None
    return registers, stack, per_update


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return None if found is None else int(found[1])


def _loops(listing: str) -> list[tuple[int, int]]:
    """Instructions and exponentials of every innermost loop in a disassembly."""
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
    return [(end - start + 1, sum("MUFU.EX2" in line for line in code[start : end + 1])) for start, end in inner]


def main() -> None:
    """Print a table of all kernels and targets."""
    print(f"{'kernel':16}{'target':8}{'dtype':6}{'s':>6}{'regs':>6}{'stack':>6}{'instr/update':>14}")
    for target in TARGETS:
        for kernel in KERNELS:
            for dtype in ("fp32", "bf16"):
                c = compile_kernel(kernel, target, dtype)
                per = "" if c.instructions_per_update is None else f"{c.instructions_per_update:.1f}"
                registers, stack = ("" if v is None else str(v) for v in (c.registers, c.stack_bytes))
                print(f"{kernel:16}{target:8}{dtype:6}{c.seconds:6.1f}{registers:>6}{stack:>6}{per:>14}")


if __name__ == "__main__":
    main()
