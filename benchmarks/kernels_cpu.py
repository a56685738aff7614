"""The CPU benchmark of the scan: goals C1-C8 and C11-C13, both sides, with the floors measured in the same run.

    python benchmarks/kernels_cpu.py --peers FOLDER --json FILE.json > FILE.md

Figures are CPU time of one thread, medians over rounds in which all candidates take turns; ratios bear a busy machine.
Speed is not printed when a result is wrong: first every candidate is compared with the float64 scan.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from peers import load_peers  # noqa: E402
from timing import ROOT, alternate, machine  # noqa: E402

from medmamba.kernels import routed_scan, selective_scan  # noqa: E402
from medmamba.kernels.build import COMPILE_FLAGS, find_compiler  # noqa: E402
from medmamba.kernels.library import choose_instruction_set, instruction_set  # noqa: E402

# name: K, channels, L, N, as in the protocol
SHAPES = {
    "K4 D64 L256 N16": (4, 64, 256, 16),
    "K4 D768 L256 N16": (4, 768, 256, 16),
    "K4 D1536 L64 N16": (4, 1536, 64, 16),
    "K4 D192 L4096 N16": (4, 192, 4096, 16),
    "K1 D96 L32768 N16": (1, 96, 32768, 16),
    "K4 D192 L4096 N1": (4, 192, 4096, 1),
}
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
# mamba_ssm's reference has a backward pass that is quadratic in L: it is trained only on the smallest shape.
QUADRATIC = "mamba_ssm ref"


def inputs(K: int, channels: int, length: int, states: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the protocol (seed 0), in the native layout, and the route table."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    values = {
        "x": normal(1, length, channels),
        "dt": 0.5 * normal(1, length, K, channels),
        "A": -torch.arange(1, states + 1).float() * torch.exp(0.1 * normal(K, channels, states)),
        "B": normal(1, length, K, states),
        "C": normal(1, length, K, states),
        "D": 1 + 0.1 * normal(K, channels),
        "dt_bias": -4 + 0.5 * normal(K, channels),
    }
    raster = torch.arange(length)
    side = int(length**0.5)
    transpose = raster.reshape(side, side).t().reshape(-1) if side * side == length else raster
    routes = torch.stack([raster, transpose, raster.flip(0), transpose.flip(0)][:K]).int()
    return values, routes


def gathered(values: dict[str, Tensor], routes: Tensor) -> dict[str, Tensor]:
    """The same numbers in the peers' layout: routes followed beforehand, (1, K * D, L)."""
    order = [route.long() for route in routes]

    def follow(value: Tensor) -> Tensor:  # (1, L, K, c) to (1, K, c, L)
        return torch.stack([value[:, o, k] for k, o in enumerate(order)], 1).transpose(2, 3).contiguous()

    x = values["x"].unsqueeze(2).expand(-1, -1, len(order), -1)
    found = {"u": follow(x).flatten(1, 2), "delta": follow(values["dt"]).flatten(1, 2), "A": values["A"].flatten(0, 1)}
    found |= {"B": follow(values["B"]), "C": follow(values["C"])}
    found |= {"D": values["D"].flatten(), "bias": values["dt_bias"].flatten()}
    return {name: value.clone().requires_grad_() for name, value in found.items()}


def merged(y: Tensor, routes: Tensor) -> Tensor:
    """A peer's output (1, K * D, L) put back into spatial order and summed over the routes."""
    pieces = y.unflatten(1, (len(routes), -1)).transpose(2, 3)  # (1, K, L, D)
    return sum(pieces[:, k][:, route.long().argsort()] for k, route in enumerate(routes))  # type: ignore[return-value]


def errors_against_float64(values: dict[str, Tensor], routes: Tensor) -> tuple[float, float, Tensor]:
    """Largest relative error (max norm) of y and of the gradients, and the exact y."""
    cotangent = torch.randn(values["x"].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for dtype, backend in ((torch.float64, "torch"), (torch.float32, "cpp")):
        leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in values.items()}
        y = routed_scan(**leaves, routes=routes, backend=backend)
        results.append([y.detach(), *torch.autograd.grad((y * cotangent).sum(), list(leaves.values()))])
    exact, found = results
    ratios = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)]
    return ratios[0], max(ratios[1:]), exact[0]


def train(run, leaves: dict[str, Tensor], cotangent: Tensor):  # type: ignore[no-untyped-def]
    def step() -> None:
        torch.autograd.grad(run(), list(leaves.values()), cotangent)

    return step


def forward(run):  # type: ignore[no-untyped-def]
    def step() -> None:
        with torch.no_grad():
            run()

    return step


FLOOR_ROUNDS = 1 << 20


def floors() -> dict[str, float]:
    """Updates per second with everything in registers (scan, exponential alone), and bytes per second of a copy."""
    width = {"avx512": 16, "avx2": 8, "base": 4}[instruction_set()]
    machine_flags = {
        16: ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
        8: ["-mavx2", "-mfma"],
        4: [],
    }
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "floor.so"
        command = [str(find_compiler()), *COMPILE_FLAGS, *machine_flags[width], f"-DMM_WIDTH={width}", "-w"]
        command += [f"-I{ROOT / 'kernels' / 'csrc'}", "-fPIC", "-shared", "-fvisibility=default", "-o", str(library)]
        subprocess.run([*command, str(ROOT / "benchmarks" / "floor.cpp")], check=True)
        code = ctypes.CDLL(str(library))
    rates = {}
    for name in ("scan", "exp"):
        function = getattr(code, f"mm_floor_{name}")
        function.restype, function.argtypes = ctypes.c_float, (ctypes.c_int64,)
        best = min(_timed(lambda f=function: f(FLOOR_ROUNDS)) for _ in range(8))
        rates[name] = FLOOR_ROUNDS * 8 * width / best
    a = torch.zeros(16 << 20)
    b = torch.zeros_like(a)
    rates["copy"] = 2 * a.nbytes / min(_timed(lambda: b.copy_(a)) for _ in range(8))
    return rates


def _timed(run) -> float:  # type: ignore[no-untyped-def]
    start = time.process_time()
    run()
    return time.process_time() - start


def native(values: dict[str, Tensor], routes: Tensor):  # type: ignore[no-untyped-def]
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    return leaves, lambda: routed_scan(**leaves, routes=routes, backend="cpp")


def compare_with_peers(name: str, peers: dict, exact: Tensor, rounds: int) -> dict:  # type: ignore[type-arg]
    """Times of ours and every peer on one shape; a peer whose output is wrong is not timed."""
    values, routes = inputs(*SHAPES[name])
    leaves, run = native(values, routes)
    forwards, trains = {"ours": forward(run)}, {"ours": train(run, leaves, torch.ones_like(values["x"]))}
    wrong = {}
    theirs = gathered(values, routes)
    dropin = {key: value.clone().requires_grad_() for key, value in theirs.items()}
    candidates = {
        "drop-in": lambda: selective_scan(
            *(dropin[k] for k in ("u", "delta", "A", "B", "C", "D")), None, dropin["bias"], True
        )
    }
    candidates |= {peer: (lambda p=function: p(theirs)) for peer, function in peers.items()}
    for peer, call in candidates.items():
        with torch.no_grad():
            y = merged(call(), routes)
        error = ((y - exact).abs().max() / exact.abs().max()).item()
        if not error < 1e-3:
            wrong[peer] = f"output off by {error:.1e}: not timed"
            continue
        own = dropin if peer == "drop-in" else theirs
        forwards[peer] = forward(call)
        if not (peer == QUADRATIC and SHAPES[name][2] * SHAPES[name][1] > 64 * 256):
            trains[peer] = train(call, own, torch.ones_like(theirs["u"]))
    kept: list[Tensor] = []

    def keep_states() -> None:
        kept[:] = [run()]

    forwards["ours, for training"] = keep_states
    return {
        "forward": alternate(forwards, rounds),
        "forward_backward": alternate(trains, rounds),
        "wrong": wrong,
    }


def instruction_sets(name: str) -> dict:  # type: ignore[type-arg]
    """Forward and backward seconds for every instruction set that this processor has."""
    values, routes = inputs(*SHAPES[name])
    leaves, run = native(values, routes)
    step = train(run, leaves, torch.ones_like(values["x"]))

    def with_set(isa: str):  # type: ignore[no-untyped-def]
        def timed() -> None:
            choose_instruction_set(isa)
            step()

        return timed

    usable = []
    for isa in ("avx512", "avx2", "base"):
        try:
            choose_instruction_set(isa)
            usable.append(isa)
        except ValueError:
            continue
    times = alternate({isa: with_set(isa) for isa in usable}, 6)
    choose_instruction_set()
    return times


def threads(name: str) -> dict[str, tuple[float, float]]:
    """Wall seconds of a training step on one and on two threads."""
    values, routes = inputs(*SHAPES[name])
    leaves, run = native(values, routes)
    step = train(run, leaves, torch.ones_like(values["x"]))

    def on(count: int):  # type: ignore[no-untyped-def]
        def timed() -> None:
            torch.set_num_threads(count)
            step()

        return timed

    times = alternate({"1": on(1), "2": on(2)}, 20, clock=time.perf_counter)
    torch.set_num_threads(1)
    return times


def bit_equal(name: str) -> bool:
    """Whether all gradients are the same bits on 1, 2 and 5 threads and when repeated."""
    values, routes = inputs(*SHAPES[name])
    results = []
    for count in (1, 2, 5, 1):
        torch.set_num_threads(count)
        leaves, run = native(values, routes)
        results.append(torch.autograd.grad(run().sum(), list(leaves.values())))
    torch.set_num_threads(1)
    return all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def extra_memory(name: str) -> float:
    """Peak memory of a training step beyond inputs, output and gradients, over the bytes of the inputs.

    Runs in a process of its own, by the kernel's own count of the highest resident size.
    """
    command = [sys.executable, __file__, "--memory-of", name]
    plain = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    return float(subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout.split()[-1])


def _measure_memory(name: str) -> float:
    warm, routes = inputs(1, 16, 16, 2)
    leaves, run = native(warm, routes)
    run().sum().backward()
    values, routes = inputs(*SHAPES[name])
    leaves = {key: value.requires_grad_() for key, value in values.items()}
    cotangent = torch.ones_like(values["x"])
    size = sum(value.nbytes for value in values.values())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    y = routed_scan(**leaves, routes=routes, backend="cpp")
    gradients = torch.autograd.grad(y, list(leaves.values()), cotangent)
    extra = resident("VmHWM") - before - y.nbytes - sum(g.nbytes for g in gradients)
    return max(extra, 0) / size


def resident(field: str) -> int:
    """A size from /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def ratio(times: dict, slow: str, fast: str) -> float:  # type: ignore[type-arg]
    return times[slow][0] / times[fast][0]


def run(peers_folder: Path | None, rounds: int) -> dict:  # type: ignore[type-arg]
    """All figures of the benchmark."""
    torch.set_num_threads(1)
    peers, missing = load_peers(peers_folder)
    result: dict = {"machine": machine() | {"instruction set": instruction_set()}, "missing peers": missing}
    exact, errors = {}, {}
    torch.set_num_threads(2)
    for name, sizes in SHAPES.items():
        # float64 with gradients takes gigabytes on long routes: the error is measured on 8192 positions at most
        K, channels, length, states = sizes
        y_error, gradient_error, exact[name] = errors_against_float64(*inputs(K, channels, min(length, 8192), states))
        if length > 8192:
            values, routes = inputs(*sizes)
            with torch.no_grad():
                exact[name] = routed_scan(**values, routes=routes, backend="cpp")
        errors[name] = (y_error, gradient_error)
        if y_error > 1e-6 or gradient_error > 5e-6:
            raise SystemExit(
                f"{name}: wrong by {y_error:.1e} / {gradient_error:.1e}. No speed is reported for wrong results."
            )
    torch.set_num_threads(1)
    result["errors"] = errors
    result["floor"] = floors()
    result["shapes"] = {}
    for name in SHAPES:
        print(f"timing {name}", file=sys.stderr, flush=True)
        result["shapes"][name] = compare_with_peers(name, peers, exact[name], rounds)
    if "VMamba easy" in peers:
        result["compiled"] = compiled(peers["VMamba easy"])
    result["instruction sets"] = instruction_sets("K4 D768 L256 N16")
    result["threads"] = {name: threads(name) for name in ("K4 D768 L256 N16", "K4 D192 L4096 N16", "K1 D96 L32768 N16")}
    result["bit equal"] = {name: bit_equal(name) for name in ("K4 D64 L256 N16", "K4 D192 L4096 N16")}
    result["extra memory"] = {
        name: extra_memory(name) for name in ("K4 D768 L256 N16", "K4 D192 L4096 N16", "K1 D96 L32768 N16")
    }
    result["peak resident MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def compiled(easy) -> dict:  # type: ignore[no-untyped-def,type-arg]
    """Ours against torch.compile of the best chunked torch scan (C2)."""
    values, routes = inputs(*SHAPES["K4 D768 L256 N16"])
    leaves, run = native(values, routes)
    theirs = gathered(values, routes)
    fast = torch.compile(lambda: easy(theirs))
    cotangent = torch.ones_like(theirs["u"])
    try:
        steps = {
            "ours": train(run, leaves, torch.ones_like(values["x"])),
            "compiled easy": train(fast, theirs, cotangent),
        }
        return alternate(steps, 6, warmup=3)
    except Exception as error:  # the compiler needs a working C++ tool chain of its own
        return {"failed": f"{type(error).__name__}: {str(error)[:200]}"}


# Freed memory stays with the process, for every candidate: an output of 12 MB in fresh pages costs thousands of page
# faults, as long as the scan itself on a virtual machine, and says nothing about a kernel.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}


def keep_freed_memory() -> None:
    """Start this process anew with the allocator told to keep what is freed, unless it is."""
    if not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder with the checkouts mamba, VMamba and mamba.py")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(_measure_memory(arguments.memory_of))
        return
    keep_freed_memory()
    result = run(arguments.peers, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    from tables import kernels_cpu_table

    print(kernels_cpu_table(result, SHAPES))


if __name__ == "__main__":
    main()
