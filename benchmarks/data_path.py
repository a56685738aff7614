"""What batches cost the training process, and how long it waits for them: data workers beside a network that sleeps.

    python benchmarks/data_path.py [--workers 2] [--batches 20] [--step 0.5]

Writes two stored cases into a temporary folder, and for each way of augmentation takes batches of 128^3 x 2 patches
from the data workers while the network of each step only sleeps. Prints the processor time of the training process a
batch (all its threads), that of the workers, and the fraction of the time that the training waited. A GPU's
page-locked memory is imitated by memory that is allocated once. Earlier versions: PYTHONPATH=CHECKOUT and --earlier.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmamba.plans.schema import Mirroring
from medmamba.preprocessing.store import CaseReader, write_case
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.batches import Batch, PatchRecipe, PatchSource
from medmamba.training.workers import SupervisedWorkers

EDGE = 160
"""Edge of a stored case in voxels."""


def stored(folder: Path, patch: int, cases: int = 2) -> list[CaseReader]:
    """Cases of noise over slow waves, with three structures."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(0, 6, EDGE)] * 3, indexing="ij")
    for number in range(cases):
        waves = sum(np.sin(axis + number) for axis in axes)
        image = (waves + rng.normal(0, 0.3, waves.shape)).astype(np.float32)[None]
        labels = np.digitize(waves, [1.0, 1.8, 2.4]).astype(np.int16)
        write_case(folder / f"c_{number}", f"c_{number}", image, labels, chunk=(patch // 2,) * 3)
    return [CaseReader(folder / f"c_{number}") for number in range(cases)]


def seconds_of(pids: list[int]) -> float:
    """Processor seconds of running processes."""
    ticks = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for pid in pids]
    return sum(int(tick) for pair in ticks for tick in pair) / 100


class PageLocked:
    """Copies batches as a GPU gets them: into memory that is allocated once. The copy to the GPU costs no processor."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], torch.Tensor] = {}

    def place(self, batch: Batch) -> Batch:
        """The batch in that memory, in two places in turn."""
        tensors = [batch.image, batch.label, *(tensor for pair in batch.enlarged for tensor in pair)]
        for number, tensor in enumerate(tensors):
            flat = tensor.reshape(-1).view(torch.uint8)
            kept = self._memory.get((batch.step % 2, number))
            if kept is None or len(kept) < len(flat):
                kept = self._memory[batch.step % 2, number] = torch.zeros(len(flat), dtype=torch.uint8)
            kept[: len(flat)].copy_(flat)
        return batch


def measure(
    source: PatchSource, workers: int, batches: int, step: float, place: Mapping[str, Any]
) -> tuple[float, float, float, float]:
    """Milliseconds a batch of the training process and of the workers, fraction of waiting, and megabytes a batch."""
    with closing(SupervisedWorkers(source, workers, stall_seconds=600, **place)) as stream:
        for _ in range(workers + 2):
            batch = next(stream)
        pids = [worker._process.pid for worker in stream._workers]
        before, own, started, waited, size = seconds_of(pids), time.process_time(), time.monotonic(), 0.0, 0
        for _ in range(batches):
            batch = next(stream)
            waited += stream.last_wait
            tensors = [batch.image, batch.label, *(t for pair in getattr(batch, "enlarged", ()) for t in pair)]
            size += sum(tensor.nbytes for tensor in tensors)
            time.sleep(step)
        wall = time.monotonic() - started
        own, theirs = time.process_time() - own, seconds_of(pids) - before
    return 1000 * own / batches, 1000 * theirs / batches, waited / wall, size / batches / 1e6


def main() -> None:
    """One row for each way of augmentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--step", type=float, default=0.5, help="seconds that the network sleeps")
    parser.add_argument("--earlier", action="store_true", help="measure a version that did not place batches")
    choices = parser.parse_args()
    print("| augmentation | workers | step | MB a batch | training process | workers, together | waiting |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        cases = stored(Path(folder), choices.patch)
        plan = augmentation_plan((choices.patch,) * 3, Mirroring(axes=[0, 1, 2]))
        for way in ("none", "cpu", "device"):
            source = PatchSource(cases, PatchRecipe(plan, choices.batch, 1, augment=way))
            place = {} if choices.earlier else {"place": PageLocked().place}
            own, theirs, waiting, size = measure(source, choices.workers, choices.batches, choices.step, place)
            print(
                f"| {way} | {choices.workers} | {choices.step:g} s | {size:.0f} | {own:.1f} ms | {theirs:.0f} ms | "
                f"{waiting:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
