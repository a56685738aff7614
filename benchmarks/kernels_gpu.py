"""The GPU benchmark of the scan: parity, then goals G1-G9, in one command of a few minutes.

    python benchmarks/kernels_gpu.py --json FILE.json > FILE.md

Peers are timed in the same run when they can be imported: `selective_scan_cuda` (mamba_ssm) on routes that were
followed beforehand, and `selective_scan_cuda_oflex` (VMamba). Those that are missing are named. Times are CUDA events,
the cache is flushed between calls, candidates take turns, medians are reported; clocks are left as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from timing import machine  # noqa: E402

from medmamba.kernels import deformable_conv, offset_mask_width, routed_scan, ssd_chunked  # noqa: E402

# batch, L, channels, K, N
SHAPES = {
    "VM-UNet 256 stage 1": (8, 4096, 192, 4, 16),
    "VM-UNet 256 stage 2": (8, 1024, 384, 4, 16),
    "VM-UNet 256 stage 3": (8, 256, 768, 4, 16),
    "VM-UNet 256 stage 4": (8, 64, 1536, 4, 16),
    "VM-UNet 512 stage 1": (8, 16384, 192, 4, 16),
    "N = 1": (8, 4096, 192, 4, 1),
    "3D 128, patch 2": (1, 262144, 96, 1, 16),
    "3D 128, patch 2, K = 3": (1, 262144, 96, 3, 16),
    "3D 128, patch 4": (1, 32768, 192, 1, 16),
    "HRV branch": (8, 3072, 128, 4, 16),
}
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
SECONDS_LEFT = 420.0  # for timing; what does not fit is left out and said


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the protocol (seed 0) and the route table; x, dt, B and C in `dtype`."""
    batch, length, channels, K, N = shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    values = {
        "x": normal(batch, length, channels).to(dtype),
        "dt": (0.5 * normal(batch, length, K, channels)).to(dtype),
        "A": -torch.arange(1, N + 1, device=device) * torch.exp(0.1 * normal(K, channels, N)),
        "B": normal(batch, length, K, N).to(dtype),
        "C": normal(batch, length, K, N).to(dtype),
        "D": 1 + 0.1 * normal(K, channels),
        "dt_bias": -4 + 0.5 * normal(K, channels),
    }
    raster = torch.arange(length, device=device)
    side = int(length**0.5)
    transpose = raster.reshape(side, side).t().reshape(-1) if side * side == length else raster
    return values, torch.stack([raster, transpose, raster.flip(0), transpose.flip(0)][:K]).int()


# The other operators, in Triton and in torch operations.
OPERATORS = (
    "DCNv4 2D (8, 64, 64, 128), 8 groups",
    "DCNv4 3D (1, 32, 32, 32, 64), 4 groups",
    "SSD (8, 4096, 12, 64), n 128",
)


def operator(name: str) -> tuple[Callable[[str], Tensor], list[Tensor]]:
    """One of OPERATORS as a function of the backend, and the tensors that want gradients."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device="cuda").requires_grad_()

    if name.startswith("SSD"):
        X, B, C = normal(8, 4096, 12, 64), normal(8, 4096, 1, 128), normal(8, 4096, 1, 128)
        A = (-0.1 * normal(8, 4096, 12).abs()).detach().requires_grad_()
        return lambda backend: ssd_chunked(X, A, B, C, backend=backend), [X, A, B, C]  # type: ignore[return-value]
    shape, groups = ((8, 64, 64, 128), 8) if "2D" in name else ((1, 32, 32, 32, 64), 4)
    dims = len(shape) - 2
    value, offset_mask = normal(*shape), normal(*shape[:-1], offset_mask_width(groups, 3**dims, dims))
    return lambda backend: deformable_conv(value, offset_mask, groups=groups, backend=backend), [value, offset_mask]


def measure_operator(name: str) -> dict[str, Any]:
    """Times of the Triton kernels and of torch operations on the same device, after their results agree."""
    run, leaves = operator(name)
    results = []
    for backend in ("triton", "torch"):
        y = run(backend)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(*results, strict=True))
    if error > 1e-3:  # torch's own float32 products and sums are no better than this
        raise SystemExit(f"{name}: wrong by {error:.1e}. No speed is reported for wrong results.")
    del results

    def training(backend: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(backend).sum(), leaves)

    def forward(backend: str) -> Callable[[], object]:
        def call() -> None:
            with torch.no_grad():
                run(backend)

        return call

    backends = ("triton", "torch")
    found: dict[str, Any] = {"error": error, "forward": alternate({b: forward(b) for b in backends}, 6)}
    return found | {"training": alternate({b: training(b) for b in backends}, 6)}


def check_parity() -> dict[str, float]:
    """Worst relative error of outputs and gradients against float64; too large an error ends the run."""
    found = {}
    for name, shape in {"K4": (2, 1024, 96, 4, 16), "volume": (1, 20000, 33, 1, 16), "N1": (2, 400, 64, 2, 1)}.items():
        values, routes = inputs(shape, torch.float32)
        results = []
        for dtype, backend in ((torch.float64, "torch"), (torch.float32, "triton")):
            leaves = {k: v.to(dtype, copy=True).requires_grad_() for k, v in values.items()}
            y = routed_scan(**leaves, routes=routes, backend=backend)
            results.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(leaves.values()))])
        found[name] = max(((a - b).norm() / b.norm()).item() for a, b in zip(results[1], results[0], strict=True))
        if found[name] > 2e-5:
            raise SystemExit(f"{name}: wrong by {found[name]:.1e}. No speed is reported for wrong results.")
    return found


def alternate(candidates: dict[str, Callable[[], object]], rounds: int = 10, warmup: int = 3) -> dict[str, float]:
    """Median milliseconds of each candidate by CUDA events, in turns, with a cold cache."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, run in candidates.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def floors() -> dict[str, float]:
    """Bytes per second of a 2 GB copy, and exponentials per second of a kernel that does nothing else."""
    import triton
    import triton.language as tl

    @triton.jit
    def exponentials(out, rounds, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        a = at.to(tl.float32) * -1e-6
        b, c, d = a - 0.1, a - 0.2, a - 0.3
        for _ in range(rounds):
            a, b, c, d = tl.exp2(a) - 1.0, tl.exp2(b) - 1.0, tl.exp2(c) - 1.0, tl.exp2(d) - 1.0
        tl.store(out + at, a + b + c + d)

    programs, block, rounds = 132 * 32, 256, 2000
    out = torch.empty(programs * block, device="cuda")
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = alternate(
        {
            "exp": lambda: exponentials[(programs,)](out, rounds, BLOCK=block, num_warps=8),
            "copy": lambda: target.copy_(source),
        },
        5,
    )
    return {"exp": 4 * rounds * programs * block / times["exp"] * 1e3, "copy": 2 * source.numel() / times["copy"] * 1e3}


def gathered(values: dict[str, Tensor], routes: Tensor) -> dict[str, Tensor]:
    """The peers' layout: routes followed beforehand, (batch, K * D, L), A (K * D, N), B and C (batch, K, N, L)."""
    order = [route.long() for route in routes]

    def follow(value: Tensor) -> Tensor:
        return torch.stack([value[:, o, k] for k, o in enumerate(order)], 1).transpose(2, 3).contiguous()

    x = values["x"].unsqueeze(2).expand(-1, -1, len(order), -1)
    found = {"u": follow(x).flatten(1, 2), "delta": follow(values["dt"]).flatten(1, 2), "B": follow(values["B"])}
    found |= {"C": follow(values["C"]), "A": values["A"].flatten(0, 1), "D": values["D"].flatten()}
    return found | {"bias": values["dt_bias"].flatten()}


def peers() -> tuple[dict[str, Any], dict[str, str]]:
    """The compiled peers that can be imported, and why the others cannot."""
    found, missing = {}, {}
    for name in ("selective_scan_cuda", "selective_scan_cuda_oflex"):
        try:
            found[name] = import_module(name)
        except ImportError as error:
            missing[name] = str(error)
    return found, missing


def peer_calls(name: str, module: Any, g: dict[str, Tensor]) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Forward and backward of a peer's extension on gathered inputs."""
    if name == "selective_scan_cuda":
        args = (g["u"], g["delta"], g["A"], g["B"], g["C"], g["D"], None, g["bias"])

        def forward() -> Any:
            return module.fwd(*args, True)

        def backward(out: Any) -> Any:
            return module.bwd(*args, torch.ones_like(g["u"]), out[1], None, None, True, False)

        return forward, backward
    args = (g["u"], g["delta"], g["A"], g["B"], g["C"], g["D"], g["bias"])

    def forward_oflex() -> Any:
        return module.fwd(*args, True, 1, True)

    def backward_oflex(out: Any) -> Any:
        return module.bwd(*args, torch.ones_like(out[0]), out[1], True, 1)

    return forward_oflex, backward_oflex


def measure(name: str, dtype: torch.dtype, found: dict[str, Any]) -> dict[str, Any]:
    """Times, peak memory and reproducibility of one shape."""
    values, routes = inputs(SHAPES[name], dtype)
    leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
    cotangent = torch.ones(values["x"].shape, device="cuda")

    def ours() -> Tensor:
        return routed_scan(**leaves, routes=routes, backend="triton")  # type: ignore[return-value]

    def ours_forward() -> None:
        with torch.no_grad():
            ours()

    def ours_training() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ours(), list(leaves.values()), cotangent)

    forward, training = {"ours": ours_forward}, {"ours": ours_training}
    g = gathered(values, routes) if found else {}
    for peer, module in found.items():
        run, back = peer_calls(peer, module, g)
        forward[peer] = run  # type: ignore[assignment]
        training[peer] = lambda r=run, b=back: b(r())  # type: ignore[misc, assignment]
    result: dict[str, Any] = {"forward": alternate(forward), "training": alternate(training)}
    first, second = ours_training(), ours_training()
    result["bit equal"] = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    del first, second
    for who, step in training.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        result.setdefault("peak bytes", {})[who] = torch.cuda.max_memory_allocated() - before
    return result


def table(result: dict[str, Any]) -> str:
    """All figures as Markdown."""
    shows = "Shows the time of the operators alone on one GPU; it does not show the time of a training step."
    lines = ["# GPU scan", "", shows, "", *(f"- {key}: {value}" for key, value in result["machine"].items())]
    lines += [f"- peer not timed: {name}: {why}" for name, why in result["missing peers"].items()]
    rates = result["floor"]
    lines += [f"- measured: {rates['exp']:.3g} exponentials/s, copy {rates['copy'] / 1e12:.2f} TB/s", ""]
    lines += [
        "| shape | dtype | forward ms | fwd+bwd ms | updates/s fwd | of exp rate | of exp rate / 3, bwd "
        "| bytes/s of copy |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for key, found in result["shapes"].items():
        name, dtype = key.rsplit(" ", 1)
        batch, length, channels, K, N = SHAPES[name]
        updates = batch * length * channels * K * N
        f, both = found["forward"]["ours"] / 1e3, found["training"]["ours"] / 1e3
        size = 4 if dtype == "float32" else 2
        moved = batch * length * ((channels + K * channels + 2 * K * N) * size + 4 * channels)
        others = "".join(
            f", {peer} {found['forward'][peer]:.2f} = {found['forward'][peer] / 1e3 / f:.1f}x / "
            f"{found['training'][peer]:.2f} = {found['training'][peer] / 1e3 / both:.1f}x"
            for peer in found["forward"]
            if peer != "ours"
        )
        lines.append(
            f"| {name} | {dtype} | {f * 1e3:.3f}{others} | {both * 1e3:.3f} | {updates / f:.3g} | "
            f"{updates / f / rates['exp']:.2f} | {updates / (both - f) / (rates['exp'] / 3):.2f} | "
            f"{moved / f / rates['copy']:.2f} |"
        )
    lines += ["", f"Gradients bit-equal when repeated: {all(v['bit equal'] for v in result['shapes'].values())}."]
    lines += ["", "| operator, float32 | forward ms, Triton / torch | fwd+bwd ms, Triton / torch |", "|---|---|---|"]
    for name, found in result["operators"].items():
        f, both = found["forward"], found["training"]
        lines.append(f"| {name} | {f['triton']:.3f} / {f['torch']:.3f} | {both['triton']:.3f} / {both['torch']:.3f} |")
    return "\n".join([*lines, *(f"Left out for time: {name}." for name in result["left out"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("No CUDA or ROCm device is visible: there is nothing to measure.")
    start = time.perf_counter()
    found, missing = peers()
    result: dict[str, Any] = {
        "machine": machine() | {"device": torch.cuda.get_device_name()},
        "parity": check_parity(),
        "floor": floors(),
        "missing peers": missing,
        "shapes": {},
        "operators": {},
        "left out": [],
    }
    for name in OPERATORS:
        print(f"timing {name}", file=sys.stderr, flush=True)
        result["operators"][name] = measure_operator(name)
        torch.cuda.empty_cache()
    for dtype in (torch.float32, torch.bfloat16):
        for name in SHAPES:
            key = f"{name} {str(dtype).removeprefix('torch.')}"
            if time.perf_counter() - start > SECONDS_LEFT:
                result["left out"].append(key)
                continue
            print(f"timing {key}", file=sys.stderr, flush=True)
            result["shapes"][key] = measure(name, dtype, found)
            torch.cuda.empty_cache()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
