"""The Triton kernels without a device: they compile for every target, and the interpreter agrees with the loop."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scan_cases import (
    errors,
    float32,
    gated_in_segments,
    outputs_and_gradients,
    relative,
    scan_inputs,
    ssd_inputs,
)
from triton_check import TARGETS, compile_kernel, kernels

from medmamba.kernels import backend_report, deformable_conv, routed_scan, ssd_chunked
from medmamba.kernels.availability import why_not_triton
from medmamba.kernels.deformable.api import geometry_of
from medmamba.kernels.scan.reference import ScanInputs

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
# Each kernel once in the default run; the other compilations are slow together.
COMPILED = [
    pytest.param(kernel, target, dtype, marks=() if (target, dtype) == ("sm_90", "fp32") else pytest.mark.slow)
    for kernel in kernels()
    for target in TARGETS
    for dtype in ("fp32", "bf16")
]

STACK_BYTES = 24
"""Of what a kernel may keep in memory for want of registers: three numbers of two words."""
MOST = {("scan_forward", "sm_90"): (10.0, 0, 190), ("scan_backward", "sm_90"): (36.0, 6, 255)}
"""Instructions and shuffles per update, and registers, that the assembler may report."""


@needs_triton
@pytest.mark.parametrize(("kernel", "target", "dtype"), COMPILED)
def test_every_kernel_compiles_ahead_of_time_without_spills(kernel, target, dtype, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    before = os.times()
    compiled = compile_kernel(kernel, target, dtype)
    assert sum(os.times()[:4]) - sum(before[:4]) < 20  # of processors, ptxas' too; about one
    assert (compiled.stack_bytes or 0) <= STACK_BYTES
    for (name, of_target), (instructions, shuffles, registers) in MOST.items():
        if (kernel, target, dtype) == (name, of_target, "fp32"):
            assert compiled.instructions_per_update <= instructions
            assert compiled.shuffles_per_update <= shuffles
            assert compiled.registers <= registers


@needs_triton
@pytest.mark.parametrize(
    "what",
    [
        *("scan", "scan_far", "deform", "ssd"),
        *(pytest.param(what, marks=pytest.mark.slow) for what in ("scan_all", "deform_golden", "ssd_all", "operators")),
    ],
)
def test_the_interpreted_kernels_equal_the_float64_truth(what):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, sys.path), str(here)])}
    done = subprocess.run(
        [sys.executable, str(here / "triton_interpreted.py"), what],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for case, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert max(found.values()) <= 1e-6, (case, found)


def test_triton_is_refused_for_cpu_tensors_with_the_reason():
    inputs = {n: v.float() if v.is_floating_point() else v for n, v in scan_inputs(1, 4, 1, 2, 2).items()}
    with pytest.raises(RuntimeError, match=r"Backend 'triton' cannot run: .*CUDA and ROCm tensors, not cpu"):
        routed_scan(**inputs, backend="triton")
    assert "float64" in str(why_not_triton("cuda", torch.float64))
    assert "CUDA and ROCm" in backend_report().cpu.refused["triton"]


@needs_triton
def test_spans_fill_the_device_only_where_channels_do_not():
    from medmamba.kernels.scan.triton_launch import Launch

    def cut_of(batch, length, K, channels, N):
        sizes = (batch, length, K, channels), (K, channels, N)
        return Launch(*(torch.empty(size, device="meta") for size in sizes))

    many = cut_of(12, 256, 4, 1536, 16)
    wide = cut_of(8, 4096, 4, 192, 16)
    volume = cut_of(1, 262144, 1, 96, 16)
    assert many.spans == 1
    assert wide.spans <= 12
    assert volume.spans > 500
    for cut in (many, wide, volume, cut_of(1, 1, 1, 1, 1), cut_of(1, 65, 1, 33, 3), cut_of(64, 9, 1536, 1, 16)):
        assert cut.spans * cut.span_saves >= cut.saves > (cut.spans - 1) * cut.span_saves


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
@pytest.mark.parametrize(
    "shape", [(2, 600, 4, 96, 16), (1, 5000, 1, 33, 16), (2, 70, 3, 40, 1), (1, 33, 2, 7, 24)], ids=str
)
@pytest.mark.parametrize("options", [{}, {"merge": False}, {"softplus": False}], ids=str)
@pytest.mark.parametrize(("per_route", "gated"), [(False, False), (True, False), (False, True)])
def test_on_the_device_everything_equals_the_float64_scan(shape, options, per_route, gated):
    inputs = scan_inputs(*shape, per_route=per_route)
    if options.get("softplus") is False:
        inputs["dt"], inputs["dt_bias"] = 0.1 * inputs["dt"].abs(), 0.01 * inputs["dt_bias"].abs()
    if gated:
        inputs = gated_in_segments(inputs, options.get("merge", True))
    truth = outputs_and_gradients(inputs, "torch", torch.float64, **options)
    found = outputs_and_gradients({n: v.cuda() for n, v in inputs.items()}, "triton", torch.float32, **options)
    found = {name: value.cpu() for name, value in found.items()}
    assert max(errors(found, truth).values()) <= 2e-5, errors(found, truth)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
def test_on_the_device_gradients_are_the_same_bits_every_time():
    inputs = {name: value.cuda() for name, value in scan_inputs(1, 3000, 2, 64, 16).items()}
    first, second = (outputs_and_gradients(inputs, "triton", torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_the_device_half_precision_inputs_are_computed_in_float32(dtype):
    inputs = scan_inputs(2, 300, 2, 32, 8)
    rounded = {n: v.to(dtype) if n in ("x", "dt", "B", "C") else v for n, v in inputs.items()}
    on_device = {n: v.cuda().float() if v.dtype == torch.float64 else v.cuda() for n, v in rounded.items()}
    exact = {n: v.double() if v.is_floating_point() else v for n, v in rounded.items()}
    truth = routed_scan(**exact, backend="torch")
    assert (routed_scan(**on_device).cpu() - truth).norm() <= 1e-5 * truth.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
@pytest.mark.parametrize("image", [(37, 41), (9, 10, 11)], ids=["2d", "3d"])
@pytest.mark.parametrize(
    "options",
    [{}, {"groups": 2}, {"stride": 2, "dilation": 2, "padding": 2}, {"remove_center": True, "offset_scale": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_device_the_deformable_convolution_equals_float64(image, options, dtype):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, *image, 34, generator=generator).to(dtype)
    geometry = geometry_of(value, **options)
    offset_mask = torch.randn(2, *geometry.output, geometry.columns + 3, generator=generator).to(dtype)
    results = []
    for device, kind, backend in (
        ("cpu", torch.float64, "torch"),
        ("cuda", dtype, "triton"),
        ("cuda", dtype, "triton"),
    ):
        leaves = [tensor.to(device, kind, copy=True).requires_grad_() for tensor in (value, offset_mask)]
        out = deformable_conv(*leaves, **options, backend=backend)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=device).reshape(out.shape)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, cotangent)])
    for truth, found, again in zip(*results, strict=True):
        assert torch.equal(found, again)
        limit = 1e-4 if found.dtype == torch.float32 else 1e-2  # gradients have the dtype of their inputs
        assert relative(found.cpu(), truth) <= limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
@pytest.mark.parametrize("shape", [(2, 300, 4, 64, 1, 128), (1, 1000, 6, 40, 3, 20), (1, 63, 2, 80, 2, 64)], ids=str)
@pytest.mark.parametrize("decay", [1e-6, 0.3, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_device_state_space_duality_equals_float64(shape, decay, dtype):
    values = {name: value.to(dtype) for name, value in ssd_inputs(*shape, decay=decay).items()}
    results = []
    for device, kind, backend in [("cpu", torch.float64, "torch"), *[("cuda", dtype, "triton")] * 2]:
        leaves = {name: value.to(device, kind, copy=True).requires_grad_() for name, value in values.items()}
        outputs = ssd_chunked(**leaves, backend=backend, return_last_state=True)
        cotangents = [torch.linspace(-1, 1, v.numel(), dtype=v.dtype, device=device).reshape(v.shape) for v in outputs]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
        results.append([v.detach() for v in (*outputs, *gradients)])
    for truth, found, again in zip(*results, strict=True):
        assert torch.equal(found, again)
        # Where the decay is strong the gradient of the log decay is a remainder of nothing: nothing to be relative to.
        size = max(truth.norm().item(), 1e-3)
        assert (found.cpu().double() - truth).norm().item() <= (2e-5 if found.dtype == torch.float32 else 1e-2) * size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
def test_on_the_device_the_operators_pass_opcheck():
    from medmamba.kernels.deformable.compiled import deformable_conv_op
    from medmamba.kernels.scan.triton_launch import routed_scan_triton
    from medmamba.kernels.state_space_duality.triton_launch import ssd_triton

    def leaves(values):
        return [v.cuda().float().requires_grad_() if v.is_floating_point() else v.cuda().int() for v in values]

    scan = gated_in_segments(scan_inputs(2, 20, 2, 5, 3))
    names = ScanInputs._fields[:-2]
    torch.library.opcheck(routed_scan_triton, (*leaves(scan[name] for name in names), True, True, True))
    torch.library.opcheck(ssd_triton, leaves(ssd_inputs(1, 70, 2, 3, 1, 4).values()))
    deform = leaves([torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 54)])
    torch.library.opcheck(deformable_conv_op, (*deform, [3, 3], [1, 1], [1, 1], [1, 1], 2, 1.0, False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
def test_on_the_device_one_compiled_graph_serves_several_sizes():
    def block(**inputs):
        return routed_scan(**inputs, backend="triton").square().sum()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (20, 33, 70):
        inputs = {n: v.cuda() for n, v in float32(scan_inputs(2, length, 2, 12, 4)).items()}
        inputs["x"].requires_grad_()
        (found,), (truth,) = (torch.autograd.grad(run(**inputs), [inputs["x"]]) for run in (compiled, block))
        assert torch.equal(found, truth)
