"""Processor seconds of a MONAI Bundle run by MONAI alone, beside the same bundle with medmamba's compiled operators.

    medmamba export RUN -o BUNDLE ...
    python benchmarks/bundle_speed.py BUNDLE IMAGES [--repeat 3]

Each turn is a process of its own on one thread that predicts all images of the folder twice; the second time counts.
The sides take turns, medians are printed, and no speed where masks differ.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from medmamba.images import read_label_map

TURN = """
import sys, time
images, masks, alone = sys.argv[1:]
if alone == "True":
    sys.modules["medmamba"] = None
import torch
from monai.bundle import ConfigWorkflow
torch.set_num_threads(1)
bundle = ConfigWorkflow("configs/inference.json", meta_file="configs/metadata.json", logging_file=False,
    workflow_type="infer", bundle_root=".", dataset_dir=images, output_dir=masks)
bundle.initialize()
bundle.run()  # imports what it needs
started = time.process_time()
bundle.run()
print("seconds", time.process_time() - started)
"""
SIDES = {"MONAI alone": True, "with medmamba's operators": False}


def turn(bundle: Path, images: Path, masks: Path, alone: bool) -> float:
    """Processor seconds of one side, which writes its masks."""
    arguments = [sys.executable, "-W", "ignore", "-c", TURN, str(images), str(masks), str(alone)]
    ran = subprocess.run(arguments, cwd=bundle, check=True, stdout=subprocess.PIPE, text=True)
    return float(ran.stdout.rsplit("seconds", 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(given.repeat):
            for side, alone in SIDES.items():
                seconds[side].append(turn(given.bundle, given.images.resolve(), Path(place) / side, alone))
        first, second = (sorted(path for path in (Path(place) / side).rglob("*.nii.gz")) for side in SIDES)
        pairs = zip(first, second, strict=True)
        equal = min(float(np.mean(read_label_map(a).array == read_label_map(b).array)) for a, b in pairs)
    print(f"{len(first)} masks, at least {equal:.5%} of the voxels equal")
    if equal < 1 - 1e-4:
        sys.exit("Masks differ: no speed is printed.")
    alone, together = (statistics.median(seconds[side]) for side in SIDES)
    print(
        f"| MONAI alone | with medmamba's operators | ratio |\n|---|---|---|\n| {alone:.2f} s | {together:.2f} s | ",
        end="",
    )
    print(f"{alone / together:.2f} |")


if __name__ == "__main__":
    main()
