"""The day with a GPU: every measurement that needs one, row by row, each kept as soon as it is made.

    python benchmarks/gpu.py --out DIR                      # all sections, at most 9 minutes
    python benchmarks/gpu.py --out DIR --sections kernels   # one of them; again until all rows are there

Every row is a line of DIR/rows.jsonl, written when it was measured; rows that are there already are not measured again,
so a run that was ended is continued by the next. DIR/gpu.md is the table of all rows so far. What fails is a row with
its reason; the other rows do not depend on it. Results are compared with float64 before anything is timed.

Times: a kernel that only waits is queued first, so that the host is ahead of the GPU and its own time is not measured;
host time is a column of its own. Needs torch and triton; sections that need more say what is missing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "plans")]

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]
"""Names of rows and what measures them."""

SHAPES = {  # batch, L, channels, K, N
    "VM-UNet 256, stage 1": (8, 4096, 192, 4, 16),
    "VM-UNet 256, stage 4": (8, 64, 1536, 4, 16),
    "VM-UNet 512, stage 1": (8, 16384, 192, 4, 16),
    "planned 3D 128^3, stage 2": (2, 32768, 64, 6, 8),
    "planned 3D 128^3, stage 4": (2, 512, 256, 6, 8),
    "3D 128^3, patch 2": (1, 262144, 96, 1, 16),
    "one state": (8, 4096, 192, 4, 1),
}
NETWORKS = ("plain_unet", "residual_unet", "vm_unet", "u_mamba_bot", "mambaout", "hrvmamba")
PATCH = 128
ROUNDS = 10
WAIT_CYCLES = 20_000_000
"""About 10 ms on a GPU: longer than the host needs to queue what is timed."""


def device() -> torch.device:
    """The GPU that is measured."""
    return torch.device("cuda", torch.cuda.current_device())


def milliseconds(run: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median time on the GPU and on the host; the first call is not counted."""
    run()
    on_gpu, on_host = [], []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if hasattr(torch.cuda, "_sleep"):
            torch.cuda._sleep(WAIT_CYCLES)
        started = time.perf_counter()
        begin.record()
        run()
        end.record()
        on_host.append(1000 * (time.perf_counter() - started))
        torch.cuda.synchronize()
        on_gpu.append(begin.elapsed_time(end))
    return statistics.median(on_gpu), statistics.median(on_host)


def relative(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth, in float64."""
    return float((found.double().cpu() - truth.double().cpu()).norm() / truth.double().norm().cpu())


def facts() -> Rows:
    """Which GPU, driver and versions; every kernel once against float64 (doctor --gpu)."""

    def doctor() -> Row:
        from medmamba.doctor_gpu import gpu_findings

        findings = list(gpu_findings(str(device())))
        return {"right": all(finding.right for finding in findings), "lines": [finding.text for finding in findings]}

    yield "doctor", doctor


def kernels() -> Rows:
    """The scan: forward, and forward and backward, in float32 and bf16; exponentials per second."""
    from medmamba.kernels import routed_scan

    def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        batch, length, channels, routes, states = shape
        generator = torch.Generator(device()).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=device())

        return {
            "x": normal(batch, length, channels).to(dtype),
            "dt": (0.5 * normal(batch, length, routes, channels)).to(dtype),
            "A": -(1 + normal(routes, channels, states).abs()),
            "B": normal(batch, length, routes, states).to(dtype),
            "C": normal(batch, length, routes, states).to(dtype),
            "D": normal(routes, channels),
            "dt_bias": normal(routes, channels) - 4,
        }

    def measure(shape: tuple[int, ...], dtype: torch.dtype) -> Row:
        small = inputs((1, min(shape[1], 300), min(shape[2], 40), *shape[3:]), dtype)
        truth = routed_scan(**{name: value.cpu().double() for name, value in small.items()}, backend="torch")
        error = relative(routed_scan(**small, backend="triton"), truth)
        if not error < (1e-4 if dtype == torch.float32 else 1e-2):
            return {"error": error, "failed": "wrong, so not timed"}
        values = {name: value.requires_grad_() for name, value in inputs(shape, dtype).items()}

        def forward() -> None:
            with torch.no_grad():
                routed_scan(**values, backend="triton")

        def both() -> None:
            torch.autograd.grad(routed_scan(**values, backend="triton").sum(), list(values.values()))

        batch, length, channels, routes, states = shape
        updates = batch * length * channels * routes * states
        (one, host), (two, host_both) = milliseconds(forward), milliseconds(both)
        return {
            "error": error,
            "forward_ms": one,
            "forward_host_ms": host,
            "training_ms": two,
            "training_host_ms": host_both,
            "forward_updates_per_s": updates / one * 1000,
        }

    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            yield f"{name}, {str(dtype)[6:]}", lambda shape=shape, dtype=dtype: measure(shape, dtype)


def planned(name: str) -> tuple[Any, list[int]]:
    """A family as it is planned for patches of isotropic voxels, and the patch size."""
    from medmamba.plans.families import family
    from medmamba.plans.network import network_plan
    from medmamba.plans.patch import plan_pooling

    chosen = family(name)
    pooling = plan_pooling((1.0,) * 3, (PATCH,) * 3, max_pools=chosen.max_pools)
    return network_plan(chosen, pooling), list(pooling.patch_size)


def network_of(name: str) -> nn.Module:
    """The planned network of a family, with one input channel and three classes."""
    from live_memory import build

    return build(planned(name)[0], 1, 3)


def stepper_of(name: str, precision: str, *, compiled: bool = False) -> Any:
    """What `medmamba train` steps with, and its batch."""
    from medmamba.models.output_channels import OutputChannels
    from medmamba.training.batches import Batch
    from medmamba.training.config import TrainConfig
    from medmamba.training.losses import DeepSupervision, SegmentationLoss
    from medmamba.training.step import Compiled, Stepper, make_optimizer

    patch = planned(name)[1]
    network, channels = network_of(name).to(device()), OutputChannels.of_labels(["background", "a", "b"])
    config = TrainConfig(precision=precision, compile=compiled)  # type: ignore[arg-type]
    loss = DeepSupervision(SegmentationLoss(channels, batch_dice=True))
    forward = Compiled(network, print) if compiled else None
    image = torch.randn(2, 1, *patch, device=device())
    batch = Batch(0, image, (image > 0.5).long() + (image > 1).long(), ("a", "b"))
    return Stepper(network, make_optimizer(network, config), loss, channels, config, forward), batch


def steps() -> Rows:
    """A training step of each network: time, host time, largest memory; half precision, float32, torch.compile."""

    def measure(name: str, precision: str, compiled: bool) -> Row:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        stepper, batch = stepper_of(name, precision, compiled=compiled)
        gpu, host = milliseconds(lambda: stepper.step(batch, 1e-4))
        outcome = stepper.last()
        return {
            "step_ms": gpu,
            "host_ms": host,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            "loss": outcome.loss,
        }

    for name in NETWORKS:
        yield f"{name}, bf16", lambda name=name: measure(name, "bf16", False)
    for precision, compiled in (("fp32", False), ("fp16", False), ("bf16", True)):
        for name in ("plain_unet", "vm_unet"):
            words = f"{name}, {precision}{', compiled' * compiled}"
            yield words, lambda name=name, p=precision, c=compiled: measure(name, p, c)


def data() -> Rows:
    """Steps per second and waiting with the real data path, beside the step alone."""

    def measure(augment: str, workers: int | None) -> Row:
        import tempfile
        from contextlib import closing

        from data_path import stored

        from medmamba.plans.schema import Mirroring
        from medmamba.training.augmentation import augmentation_plan
        from medmamba.training.batches import PatchRecipe, PatchSource
        from medmamba.training.placement import Placement
        from medmamba.training.workers import SupervisedWorkers, automatic_workers

        stepper, _ = stepper_of("vm_unet", "bf16")
        placement, count = Placement(device()), automatic_workers() if workers is None else workers
        with tempfile.TemporaryDirectory() as folder:
            plan = augmentation_plan((PATCH,) * 3, Mirroring(axes=[0, 1, 2]))
            source = PatchSource(stored(Path(folder), PATCH), PatchRecipe(plan, 2, 1, augment=augment))  # type: ignore[arg-type]
            with closing(SupervisedWorkers(source, count, stall_seconds=300, place=placement.place)) as stream:
                for _ in range(5):
                    stepper.step(source.finished(placement.arrived(next(stream))), 1e-4)
                stepper.last()
                started, waited, own = time.perf_counter(), 0.0, time.process_time()
                for _ in range(10 * ROUNDS):
                    batch = next(stream)
                    waited += stream.last_wait
                    stepper.step(source.finished(placement.arrived(batch)), 1e-4)
                stepper.last()
                seconds = time.perf_counter() - started
        return {
            "workers": count,
            "steps_per_s": 10 * ROUNDS / seconds,
            "waiting": waited / seconds,
            "own_processor_ms": 1000 * (time.process_time() - own) / (10 * ROUNDS),
        }

    for augment in ("device", "cpu", "none"):
        yield f"augment {augment}", lambda augment=augment: measure(augment, None)


def memory() -> Rows:
    """What the planner expects of a step, and what was used."""

    def measure(name: str, precision: str) -> Row:
        from medmamba.plans.cost.step import step_cost

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        stepper, batch = stepper_of(name, precision)
        for _ in range(3):
            stepper.step(batch, 1e-4)
        stepper.last()
        cost = step_cost(*planned(name), in_channels=1, out_channels=3, batch_size=2)
        used = torch.cuda.max_memory_allocated()
        return {
            "planned_gib": cost.peak / 2**30,
            "measured_gib": used / 2**30,
            "planned_over_measured": cost.peak / used,
        }

    for name in ("plain_unet", "vm_unet"):
        yield name, lambda name=name: measure(name, "bf16")


def prediction() -> Rows:
    """A volume of 256^3, mirrored: in half precision and float32, sums on the GPU and on the host."""

    def measure(precision: str, sums: bool, batch: int) -> Row:
        from medmamba.inference.runner import Execution, NetworkRunner
        from medmamba.inference.sliding_window import Window, stream_logits

        network = network_of("vm_unet")
        runner = NetworkRunner(network, Execution(device(), precision))

        def first(patches: Tensor) -> Tensor:
            logits = runner(patches)
            return logits if isinstance(logits, Tensor) else logits[0]

        image = torch.randn(1, *(2 * PATCH,) * 3)
        window = Window((PATCH,) * 3, (0, 1, 2), batch=batch)
        where = device() if sums else torch.device("cpu")
        seconds = []
        for _ in range(2):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for plane in stream_logits([first], image, window, device=where):
                last = plane
            seconds.append(time.perf_counter() - started)
        return {"seconds": min(seconds), "finite": bool(last.isfinite().all())}

    for precision, sums, batch in (("bf16", True, 1), ("bf16", True, 4), ("bf16", False, 1), ("fp32", True, 1)):
        words = f"{precision}, sums on the {'GPU' if sums else 'host'}, {batch} patches"
        yield words, lambda p=precision, s=sums, b=batch: measure(p, s, b)


def limits() -> Rows:
    """Memory that runs out is recognised and the next step works; a forward pass is captured as a CUDA graph."""

    def exhausted() -> Row:
        from medmamba.compute.device import is_out_of_memory

        stepper, batch = stepper_of("vm_unet", "bf16")
        huge = batch.each(lambda tensor: tensor.repeat(4096, *[1] * (tensor.ndim - 1)).contiguous())
        try:
            stepper.step(huge, 1e-4)
            return {"failed": "it fitted"}
        except RuntimeError as error:
            known, words = is_out_of_memory(error), str(error).splitlines()[0]
        del huge
        torch.cuda.empty_cache()
        stepper.step(batch, 1e-4)
        return {"recognised": known, "words": words, "loss_after": stepper.last().loss}

    def capture() -> Row:
        network = network_of("vm_unet").to(device()).eval()
        image = torch.randn(1, 1, PATCH, PATCH, PATCH, device=device())
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            expected = network(image)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = network(image)
            graph.replay()
        first, truth = (one if isinstance(one, Tensor) else one[0] for one in (found, expected))
        return {"error": relative(first, truth), "replay_ms": milliseconds(graph.replay)[0]}

    yield "out of memory", exhausted
    yield "CUDA graph of a forward pass", capture


SECTIONS: dict[str, Callable[[], Rows]] = {
    "facts": facts,
    "kernels": kernels,
    "steps": steps,
    "data": data,
    "memory": memory,
    "prediction": prediction,
    "limits": limits,
}


def read_rows(path: Path) -> list[Row]:
    """The rows so far; a line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def table(rows: list[Row]) -> str:
    """All rows as a page."""
    lines = ["# Measured on a GPU", ""]
    rows = list({(row["section"], row["name"]): row for row in rows}.values())  # the last of each
    for section in SECTIONS:
        own = [row for row in rows if row["section"] == section]
        if not own:
            continue
        lines += [f"## {section}", "", (SECTIONS[section].__doc__ or "").strip(), ""]
        columns = list(
            dict.fromkeys(key for row in own for key in row if key not in ("section", "name", "seconds_taken"))
        )
        lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {row['name']} | {' | '.join(_cell(row.get(key)) for key in columns)} |" for row in own]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "<br>".join(map(str, value)).replace("|", "/")
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")


def measure_all(out: Path, sections: list[str], seconds: float) -> int:
    """Measure what is not there yet, as long as there is time; returns the number of rows that are missing."""
    out.mkdir(parents=True, exist_ok=True)
    path, ends = out / "rows.jsonl", time.monotonic() + seconds
    known = {(row["section"], row["name"]) for row in read_rows(path) if "failed" not in row}
    if path.is_file() and not path.read_bytes().endswith(b"\n"):  # ended while it was written
        path.write_bytes(path.read_bytes() + b"\n")
    missing = 0
    for section in sections:
        for name, measure in SECTIONS[section]():
            if (section, name) in known:
                continue
            if time.monotonic() > ends:
                missing += 1
                continue
            started = time.monotonic()
            try:
                found = measure()
            except Exception as error:  # a row of its own; the others do not depend on it
                found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            row = {"section": section, "name": name, **found, "seconds_taken": round(time.monotonic() - started, 2)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            (out / "gpu.md").write_text(table(read_rows(path)))
    return missing


def main() -> None:
    """Measure on the GPU of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=9.0)
    choices = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here: nothing to measure.")
    missing = measure_all(choices.out, choices.sections, 60 * choices.minutes)
    print(
        f"{missing} rows are still to be measured: run it again." if missing else f"All rows: {choices.out / 'gpu.md'}"
    )


if __name__ == "__main__":
    main()
