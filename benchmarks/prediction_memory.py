"""Peak memory of predicting a large CT with many classes, and that the mask is the one of the naive way.

    python benchmarks/prediction_memory.py     # 118 classes, 512x512x600 at 0.75x0.75x1 mm, plan at 1.5 mm
    python benchmarks/prediction_memory.py --classes 5 --shape 64,64,48 --patch 32,32,32

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
from medmamba.inference.memory import estimate_memory
from medmamba.inference.restore import label_planes, native_planes, undo_storage
from medmamba.inference.sliding_window import Window, stream_logits
from medmamba.preprocessing.case import shape_at_spacing
from medmamba.preprocessing.resample import resample_image
from medmamba.trail import Crop, Reorient, Resample, SpatialTrail

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
    return 1.5 * resample_image(coarse, shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=118)
    parser.add_argument("--shape", default="512,512,600")
    parser.add_argument("--patch", default="128,128,128")
    parser.add_argument("--plan-mm", type=float, default=1.5)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--spill", action="store_true", help="keep the planes on disk even if they fit into memory")
    parser.add_argument("--naive", action="store_true", help="compare with all logits at once (small sizes)")
    choices = parser.parse_args()
    i, j, k = (int(n) for n in choices.shape.split(","))
    patch = tuple(int(n) for n in choices.patch.split(","))
    grid = Grid((i, j, k), affine_from(SPACING_MM))
    started = time.perf_counter()
    volume = synthetic_image((i, j, k))
    order = Reorient(grid.shape, (2, 0, 1))
    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid), Crop(grid.shape, (0, 0, 0), grid.shape), order)
    spacing = trail.grid.spacing_mm
    assert spacing is not None
    target = (choices.plan_mm,) * 3
    resample = Resample(trail.grid.shape, shape_at_spacing(trail.grid.shape, spacing, target), spacing, target)
    image = torch.from_numpy(np.ascontiguousarray(resample_image(order.apply(volume), resample.shape_after)))
    trail = trail.then(resample)
    del volume
    estimate = estimate_memory(trail, 1, choices.classes, (patch[0], patch[1], patch[2]))
    print(f"{choices.classes} classes on {i}x{j}x{k}: {estimate.sentence()}", file=sys.stderr, flush=True)
    scratch = choices.scratch if estimate.spills or choices.spill else None
    network = synthetic_network(choices.classes)
    window = Window(patch, scratch=scratch)

    def tell(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            print(f"tile {done} of {total}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    planes = native_planes(stream_logits([network], image, window, on_tile=tell), resample)
    labels = undo_storage(label_planes(planes, resample.shape_before, choices.classes)[None], trail)[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "classes": choices.classes,
        "shape": [i, j, k],
        "plan_shape": list(resample.shape_after),
        "patch": list(patch),
        "peak_gib": round(peak, 2),
        "estimated_gib": round(estimate.peak / 2**30, 2),
        "scratch_gib": round(estimate.planes / 2**30, 2) if scratch else 0.0,
        "naive_gib": round(estimate.naive / 2**30, 2),
        "seconds": round(time.perf_counter() - started, 1),
        "classes_in_mask": len(np.unique(labels)),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if choices.naive:
        every = torch.stack(list(stream_logits([network], image, Window(patch))), dim=1)
        whole = torch.stack(list(native_planes(every.unbind(1), resample)), dim=1).argmax(0).numpy()
        result["equals_naive"] = bool(np.array_equal(undo_storage(whole[None], trail)[0], labels))
    print(json.dumps(result))
    return int(peak > LIMIT_GIB or not result.get("equals_naive", True))


if __name__ == "__main__":
    sys.exit(main())
