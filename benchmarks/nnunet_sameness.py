"""Masks of converted nnU-Net models beside nnU-Net's own, case by case; one row of the table for every model.

    python benchmarks/nnunet_models.py DATA FOLDER     # with nnU-Net's Python: trains and predicts, once
    python benchmarks/nnunet_sameness.py FOLDER [NAME ...] [-o TABLE.md]

Equal voxels and Dice are those of the worst case; differences of probabilities are the largest in any voxel of any
case: from nnU-Net as it is, and from the same with patches summed in float32 instead of half precision.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from nnunet_models import MODELS, NUMBERS, results
from numpy.typing import NDArray

import medmamba
from medmamba.images import read_label_map
from medmamba.nnunet.convert import convert_model

HEAD = """| model | mirrored | cases | equal voxels | Dice per structure | probabilities | in float32 |
|---|---|---|---|---|---|---|"""


def dice(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> float:
    """The smallest Dice of the values that occur; 2 where neither has any."""
    values = [value for value in np.union1d(np.unique(ours), np.unique(theirs)) if value]
    pairs = [(ours == value, theirs == value) for value in values]
    return min((2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs), default=2.0)


def compare(root: Path, name: str, run: Path, mirror: bool) -> tuple[str, float, float]:
    """A row of the table; our and nnU-Net's processor seconds."""
    model = MODELS[name]
    raw = root / "raw" / f"Dataset{NUMBERS[model.dataset]}_{model.dataset}"
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    channels = len(json.loads((raw / "dataset.json").read_text())["channel_names"]) if ending != ".png" else 1
    masks = root / "masks" / name / ("mirrored" if mirror else "plain")
    equal, worst, seconds, apart = 1.0, 2.0, 0.0, dict[str, float]()
    cases = sorted(path.name.removesuffix(ending) for path in masks.glob(f"*{ending}"))
    predictor = medmamba.Predictor(run, mirror=mirror, configuration=model.configuration)
    for case in cases:
        files = [raw / "imagesTs" / f"{case}_{number:04d}{ending}" for number in range(channels)]
        started = time.process_time()
        found = predictor.predict(files if channels > 1 else files[0], probabilities=True)
        seconds += time.process_time() - started
        theirs = read_label_map(masks / f"{case}{ending}").array
        equal = min(equal, float((found.labels == theirs).mean()))
        worst = min(worst, dice(found.labels, theirs))
        for kind, folder in (("half", masks), ("float32", masks.with_name("float32"))):
            if folder.is_dir() and (mirror or kind == "half"):
                with np.load(folder / f"{case}.npz") as stored:
                    wanted = stored["probabilities"].transpose(0, 3, 2, 1)
                apart[kind] = max(apart.get(kind, 0.0), float(np.abs(found.probabilities - wanted).max()))
    columns = [
        name,
        "yes" if mirror else "no",
        str(len(cases)),
        f"{100 * equal:.4f} %",
        f"{worst:.5f}" if worst <= 1 else "empty",
    ]
    columns += [f"{apart['half']:.1e}", f"{apart['float32']:.1e}" if "float32" in apart else ""]
    row = f"| {' | '.join(columns)} |"
    return row, seconds, float((masks / "seconds.txt").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [HEAD]
    print(HEAD)
    for name in given.names or [name for name in MODELS if (given.folder / "masks" / name / "plain").is_dir()]:
        identifier = "resencPlans" if "ResEnc" in MODELS[name].planner else "plainPlans"
        source = results(MODELS[name], identifier, given.folder)
        with tempfile.TemporaryDirectory() as place:
            cascade = MODELS[name].configuration == "3d_cascade_fullres"
            convert_model(source.parent if cascade else source, Path(place) / "run")
            for mirror in (True, False):
                row, ours, theirs = compare(given.folder, name, Path(place) / "run", mirror)
                lines.append(row)
                print(row, f" ({ours:.1f} s, nnU-Net {theirs:.1f} s)", flush=True)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
