"""Peak memory of predicting a large CT with many classes, and that the mask is the one of the naive way.

    python benchmarks/prediction_memory.py     # 118 classes, 512x512x600 at 0.75x0.75x1 mm, plan at 1.5 mm
    python benchmarks/prediction_memory.py --naive --shape 161,120,97 --patch 64,64,64
    python benchmarks/prediction_memory.py --volumes 6 --classes 20 --shape 200,200,150 --patch 64,64,64

The logits come from a 1x1x1 convolution with fixed weights, so what is measured is everything around a network: image,
tiles, accumulation, resampling, mask. Prints one JSON line; the exit code is 1 when the limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from medmamba.geometry import Grid, affine_from
from medmamba.geometry.trail import Crop, Reorient, Resample, SpatialTrail
from medmamba.inference.memory import estimate_memory
from medmamba.inference.options import BUDGET_GIB
from medmamba.inference.restore import on_native_grid
from medmamba.inference.sliding_window import Window, stream_logits
from medmamba.models.output_channels import OutputChannels
from medmamba.preprocessing.case import shape_at_spacing
from medmamba.preprocessing.resample import resample_slabs

SPACING_MM = (0.75, 0.75, 1.0)
LIMIT_GIB = 8.0


def synthetic_network(classes: int) -> torch.nn.Module:
    """Linear functions of the intensity whose largest changes often: every class wins somewhere."""
    network = torch.nn.Conv3d(1, classes, 1)
    slopes = torch.linspace(-3, 3, classes)
    with torch.no_grad():
        network.weight[:] = slopes.reshape(-1, 1, 1, 1, 1)
        network.bias[:] = -0.5 * slopes**2  # tangents of a parabola
    return network.eval()


def synthetic_image(shape: tuple[int, int, int]) -> np.ndarray:
    """A smooth volume in float32, between about -3 and 3."""
    coarse = np.random.default_rng(0).standard_normal((1, *(max(2, n // 16) for n in shape))).astype(np.float32)
    return 1.5 * resample_slabs([coarse], coarse.shape, shape)


def all_at_once(logits: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """The naive way: the logits of every class on the whole native grid, one axis after the other."""
    _, _, columns = shape
    for axis in (1, 3, 2):
        given, wanted = logits.shape[axis], shape[axis - 1]
        if axis == 3:
            flat = torch.nn.functional.interpolate(logits.reshape(1, -1, given), size=columns, mode="linear")
            logits = flat.reshape(*logits.shape[:3], columns)
            continue
        place = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * (given / wanted) - 0.5).clamp(0, given - 1)
        below, above = place.floor().long(), place.ceil().long()
        share = (place - below).float().reshape(-1, *[1] * (3 - axis))
        logits = torch.lerp(logits.index_select(axis, below), logits.index_select(axis, above), share)
    return logits


def trail_of(grid: Grid, plan_mm: float) -> tuple[SpatialTrail, Resample]:
    """Native grid, axes in a plan's order, and the plan's spacing."""
    order = Reorient(grid.shape, (2, 0, 1))
    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid), Crop(grid.shape, (0, 0, 0), grid.shape), order)
    spacing = trail.grid.spacing_mm
    assert spacing is not None
    target = (plan_mm,) * 3
    resample = Resample(trail.grid.shape, shape_at_spacing(trail.grid.shape, spacing, target), spacing, target)
    return trail.then(resample), resample


def differences(
    labels: np.ndarray, network: torch.nn.Module, image: torch.Tensor, patch: tuple[int, int, int], trail: SpatialTrail
) -> dict[str, float]:
    """The mask against those of whole volumes of logits, by the same interpolation and by torch's trilinear one."""
    stored, resample = trail.split_resampling()
    shape = resample.shape_before
    every = torch.stack(list(stream_logits([network], image, Window(patch))), dim=1)
    whole = all_at_once(every, shape).argmax(0)
    unlike = int((stored.undo(whole.numpy()[None])[0] != labels).sum())
    del whole
    trilinear = torch.nn.functional.interpolate(every[None], size=shape, mode="trilinear")[0]
    other = stored.undo(trilinear.argmax(0).numpy()[None])[0] != labels
    gaps = stored.undo(trilinear.topk(2, dim=0).values.diff(dim=0).abs().numpy())[0]
    return {
        "voxels_unlike_naive": unlike,
        "voxels_unlike_trilinear": int(other.sum()),
        "largest_gap_there": float(gaps[other].max()) if other.any() else 0.0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=118)
    parser.add_argument("--shape", default="512,512,600")
    parser.add_argument("--patch", default="128,128,128")
    parser.add_argument("--plan-mm", type=float, default=1.5)
    parser.add_argument("--volumes", type=int, default=1, help="predict as many, to see that time and memory stay")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--memory", type=float, default=BUDGET_GIB, help="GiB; planes that do not fit go to disk")
    parser.add_argument("--naive", action="store_true", help="compare with all logits at once (small sizes)")
    choices = parser.parse_args()
    i, j, k = (int(n) for n in choices.shape.split(","))
    patch = (lambda a, b, c: (a, b, c))(*map(int, choices.patch.split(",")))
    grid = Grid((i, j, k), affine_from(SPACING_MM))
    trail, resample = trail_of(grid, choices.plan_mm)
    budget = int(choices.memory * 2**30)
    estimate = estimate_memory(trail, channels=1, classes=choices.classes, box=patch, budget=budget)
    print(f"{choices.classes} classes on {i}x{j}x{k}: {estimate.sentence()}", file=sys.stderr, flush=True)
    network = synthetic_network(choices.classes)
    window = Window(patch, scratch=choices.scratch if estimate.spills else None)

    def tell(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            print(f"tile {done} of {total}", file=sys.stderr, flush=True)

    volumes = []
    for _ in range(choices.volumes):
        wall, cpu = time.perf_counter(), time.process_time()
        volume = trail.steps[2].apply(synthetic_image((i, j, k)))  # the plan's axis order
        image = torch.from_numpy(np.ascontiguousarray(resample_slabs([volume], volume.shape, resample.shape_after)))
        del volume
        planes = stream_logits([network], image, window, on_tile=tell)
        channels = OutputChannels.of_labels([str(number) for number in range(choices.classes)])
        labels, _ = on_native_grid([(planes, trail)], channels)
        spent = time.process_time() - cpu
        volumes.append(
            {
                "seconds": round(time.perf_counter() - wall, 1),
                "cpu_seconds": round(spent, 1),
                "cpu_ns_per_voxel": round(spent / (i * j * k) * 1e9, 1),
                "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            }
        )
    peak = volumes[-1]["peak_gib"]
    result = {
        "classes": choices.classes,
        "shape": [i, j, k],
        "plan_shape": list(resample.shape_after),
        "patch": list(patch),
        "peak_gib": peak,
        "estimated_gib": round(estimate.peak / 2**30, 2),
        "scratch_gib": round(estimate.planes / 2**30, 2) if estimate.spills else 0.0,
        "naive_gib": round(estimate.naive / 2**30, 2),
        "volumes": volumes,
        "classes_in_mask": len(np.unique(labels)),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if choices.naive:
        result |= differences(labels, network, image, patch, trail)
    print(json.dumps(result))
    return int(peak > LIMIT_GIB or result.get("voxels_unlike_naive", 0) > 0)


if __name__ == "__main__":
    sys.exit(main())
