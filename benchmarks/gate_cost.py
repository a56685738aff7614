"""What the checks of every file cost: the fingerprint behind the gate against the same measures on plain reads.

    python benchmarks/gate_cost.py DATASET [--runs 5]

The plain side reads each file with nibabel and computes the same facts, hashes included; what the gated side takes more
is the gate: container and checksum, header, geometry, voxels, labels, and the comparison of image and label map. Both
run in one thread, in alternating order; processor time, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import nibabel
import numpy as np

from medmamba.datasets import DatasetSpec, read_dataset
from medmamba.geometry import Grid
from medmamba.images import LabelMap, MedicalImage
from medmamba.planning.measure import measure_case, measure_dataset
from medmamba.plans.fingerprint import build_fingerprint, samples_per_case


def plain(spec: DatasetSpec) -> None:
    """The same fingerprint from unchecked reads."""
    samples = samples_per_case(len(spec.cases))
    found = []
    for case in spec.cases:
        assert case.label is not None
        file = nibabel.load(case.images[0])
        array = np.asarray(file.dataobj, dtype=np.float32, order="F")
        channels = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
        truth = np.asarray(nibabel.load(case.label).dataobj)
        truth = truth.astype(np.uint8) if truth.dtype.kind == "f" else truth
        grid = Grid(truth.shape, file.affine)
        image, labels = MedicalImage(channels, grid, None), LabelMap(truth, grid, None)
        image.content_hash(), labels.content_hash()
        counts = labels.counts()
        found.append(measure_case(case, channels, truth, grid, spec.labels, samples=samples, counts=counts))
    drawn = [np.concatenate([one[channel] for _, one in found]) for channel in range(len(spec.channels))]
    build_fingerprint(spec.name, spec.channels, spec.labels, [stats for stats, _ in found], drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    choices = parser.parse_args()
    spec = read_dataset(choices.dataset)
    seconds: dict[str, list[float]] = {"plain": [], "gated": []}
    for number in range(choices.runs + 1):
        for name in ("plain", "gated") if number % 2 else ("gated", "plain"):
            started = time.process_time()
            plain(spec) if name == "plain" else measure_dataset(spec, workers=1)
            if number:  # the first round warms the caches
                seconds[name].append(time.process_time() - started)
    without, gated = (statistics.median(seconds[name]) for name in ("plain", "gated"))
    print(f"plain {without:.2f} s, gated {gated:.2f} s: the gate is {(gated - without) / gated:.1%} of the fingerprint")


if __name__ == "__main__":
    main()
