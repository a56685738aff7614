"""Checks of a GPU: driver and compiler, every Triton kernel once against float64, and the time of a few operations."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.compute.device import casting, choose_device, choose_precision
from medmamba.errors import ConfigError, first_line
from medmamba.kernels import deformable_conv, offset_mask_width, routed_scan, ssd_chunked
from medmamba.networks import build_network

LARGEST_ERROR = 1e-4
"""Relative error of a kernel in float32, gradients included, from which on it is called wrong."""
ROUNDS = 5
"""Turns of which the median time is taken."""

Inputs = Mapping[str, Tensor]
Operator = Callable[..., Any]
"""Of inputs by name and a backend; returns one tensor."""


@dataclass(frozen=True)
class GpuFinding:
    """A line of the report; not ``right``: something that must be mended before this GPU is used."""

    text: str
    right: bool = True


def gpu_findings(name: str = "cuda") -> Iterator[GpuFinding]:
    """What there is to say about one GPU, check by check; raises ConfigError where torch cannot use it."""
    device = choose_device(name)
    if device.type != "cuda":
        raise ConfigError(f"Device {name!r} is no GPU. Use cuda or cuda:N.")
    with torch.cuda.device(device):
        yield from _facts(device)
        for kernels, (run, inputs) in _kernel_checks().items():
            yield _checked(kernels, run, inputs, device)
        for what, seconds in _times(device):
            yield GpuFinding(f"  {what}: {seconds}")


def _facts(device: torch.device) -> Iterator[GpuFinding]:
    facts = torch.cuda.get_device_properties(device)
    yield GpuFinding(
        f"{device}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {facts.multi_processor_count} multiprocessors, "
        f"compute capability {facts.major}.{facts.minor}, trains in {choose_precision('auto', device)}"
    )
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "missing"
    yield GpuFinding(f"  torch {torch.__version__} for {built}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}")
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler:
        yield GpuFinding(f"  C compiler for Triton: {compiler}")
    else:
        yield GpuFinding(
            "  C compiler for Triton: none. Install gcc (apt-get install gcc python3-dev), or set CC.", False
        )


def _kernel_checks() -> dict[str, tuple[Operator, Inputs]]:
    """Operators and inputs that start every kernel: one program for a route, and routes in spans; float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def scan(batch: int, length: int, routes: int, channels: int, states: int) -> dict[str, Tensor]:
        return {
            "x": normal(batch, length, channels),
            "dt": 0.5 * normal(batch, length, routes, channels),
            "A": -(1 + normal(routes, channels, states).abs()),
            "B": normal(batch, length, routes, states),
            "C": normal(batch, length, routes, states),
            "D": normal(routes, channels),
            "dt_bias": normal(routes, channels) - 2,
        }

    checks: dict[str, tuple[Operator, Inputs]] = {
        "scan, 16 states": (routed_scan, scan(2, 700, 4, 40, 16)),
        "scan, one state": (routed_scan, scan(1, 700, 2, 40, 1)),
        "scan, many programs": (routed_scan, scan(64, 40, 4, 160, 4)),
        "state-space duality": (
            ssd_chunked,
            {"X": normal(1, 200, 2, 32), "A": -normal(1, 200, 2).abs(), "B": normal(1, 200, 1, 32)}
            | {"C": normal(1, 200, 1, 32)},
        ),
    }
    for size in ((9, 10), (5, 6, 7)):
        width = offset_mask_width(2, 3 ** len(size), len(size))
        inputs = {"value": normal(2, *size, 16), "offset_mask": normal(2, *size, width)}
        checks[f"deformable convolution {len(size)}D"] = (_deformable, inputs)
    return checks


def _deformable(value: Tensor, offset_mask: Tensor, backend: str) -> Tensor:
    return deformable_conv(value, offset_mask, groups=2, backend=backend)


def _checked(name: str, run: Operator, inputs: Inputs, device: torch.device) -> GpuFinding:
    """Output and gradients in float32 by Triton against float64 by torch's operations on the CPU."""
    try:
        truth = _results(run, inputs, "torch", torch.float64, torch.device("cpu"))
        found = _results(run, inputs, "triton", torch.float32, device)
    except Exception as error:  # whatever fails is the finding
        return GpuFinding(f"  {name}: FAILED ({first_line(error)})", False)
    worst = max(((a.cpu().double() - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True))
    if not worst <= LARGEST_ERROR:
        return GpuFinding(f"  {name}: WRONG by {worst:.0e}. Use --scan-backend torch, and report this.", False)
    return GpuFinding(f"  {name}: right, forward and backward (off by {worst:.0e})")


def _results(run: Operator, inputs: Inputs, backend: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    leaves = {name: value.to(device, dtype).detach().requires_grad_() for name, value in inputs.items()}
    output = run(**leaves, backend=backend)
    gradients = torch.autograd.grad(output.square().mean(), list(leaves.values()))
    return [output.detach(), *gradients]


def _times(device: torch.device) -> Iterator[tuple[str, str]]:
    """Milliseconds of copies, a convolution, a scan and a training step."""
    host = torch.zeros(64 << 20, dtype=torch.uint8).pin_memory()
    there = host.to(device)
    seconds = _median(device, lambda: there.copy_(host, non_blocking=True))
    yield "copy from page-locked memory", f"{host.nbytes / seconds / 1e9:.1f} GB/s"
    seconds = _median(device, there.clone)
    yield "copy on the GPU", f"{2 * there.nbytes / seconds / 1e9:.0f} GB/s"
    precision = choose_precision("auto", device)
    image = torch.randn(2, 32, 64, 64, 64, device=device)
    weight = torch.randn(32, 32, 3, 3, 3, device=device)

    def convolution() -> Tensor:
        with casting(precision, device):
            return F.conv3d(image, weight, padding=1)

    seconds = _median(device, convolution)
    yield f"convolution 3^3, 32 channels, 64^3 x 2, {precision}", f"{1000 * seconds:.2f} ms"
    inputs = _kernel_checks()["scan, many programs"][1]
    on_device: dict[str, Any] = {name: value.to(device, torch.float32) for name, value in inputs.items()}
    seconds = _median(device, lambda: routed_scan(**on_device, backend="triton"))
    yield "scan of 64 x 40 positions, 4 routes, 160 channels, 4 states", f"{1000 * seconds:.2f} ms"
    numbers: dict[str, Any] = {
        "strides": [[1] * 3, [2] * 3, [2] * 3],
        "features_per_stage": [32, 64, 128],
        "deep_supervision": False,
    }
    network = build_network("vm_unet", spatial_dims=3, in_channels=1, out_channels=2, **numbers).to(device)
    seconds = _median(device, lambda: _step(network, torch.randn(1, 1, 32, 32, 32, device=device), precision))
    yield f"forward and backward pass of a small vm_unet, 32^3, {precision}", f"{1000 * seconds:.1f} ms"


def _step(network: nn.Module, image: Tensor, precision: str) -> None:
    with casting(precision, image.device):
        output = network(image)
    output.float().square().mean().backward()


def _median(device: torch.device, run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[ROUNDS // 2]  # the first one compiles
