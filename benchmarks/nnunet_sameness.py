"""Masks of converted nnU-Net models beside nnU-Net's own, case by case; one row of the table for every model.

    python benchmarks/nnunet_models.py DATA FOLDER     # with nnU-Net's Python: trains and predicts, once
    python benchmarks/nnunet_sameness.py FOLDER [NAME ...] [-o TABLE.md]

Equal voxels and Dice are those of the worst case and structure, differences of probabilities the largest in any voxel
of any case: from nnU-Net as it is, and from the same with patches summed in float32 instead of half precision. "marked"
is the share of voxels with a label in nnU-Net's masks. A model that is not trained is said to be so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunet_models import MODELS, NUMBERS, results
from numpy.typing import NDArray

import medmamba
from medmamba.images import read_label_map
from medmamba.nnunet.convert import convert_model

COLUMNS = ("equal voxels", "Dice", "probabilities")
NAMES = ("model", "mirrored", "cases", "marked", *COLUMNS, *(f"{name}, float32" for name in COLUMNS))
HEAD = f"| {' | '.join(NAMES)} |\n|{'---|' * len(NAMES)}"
SUMS = {"half": "", "float32": "float32_"}


def dice(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> float:
    """The smallest Dice of the values that occur; 2 where neither has any."""
    values = [value for value in np.union1d(np.unique(ours), np.unique(theirs)) if value]
    pairs = [(ours == value, theirs == value) for value in values]
    return min((2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs), default=2.0)


@dataclass
class Difference:
    """The largest differences from nnU-Net over all cases."""

    equal: float = 1.0
    dice: float = 2.0
    probabilities: float = 0.0
    marked: float = 0.0

    def see(self, labels: NDArray[np.generic], probabilities: NDArray[np.float32], folder: Path, file: str) -> None:
        """Compare with what nnU-Net wrote for a case."""
        theirs = read_label_map(folder / file).array
        self.equal = min(self.equal, float((labels == theirs).mean()))
        self.dice = min(self.dice, dice(labels, theirs))
        self.marked = max(self.marked, float((theirs > 0).mean()))
        with np.load(folder / f"{file.partition('.')[0]}.npz") as stored:
            wanted = stored["probabilities"].transpose(0, 3, 2, 1)
        if wanted.shape != probabilities.shape:  # a picture: nnU-Net's axes are (1, rows, columns)
            wanted = wanted.reshape(len(wanted), *probabilities.shape[1:], order="A")
        self.probabilities = max(self.probabilities, float(np.abs(probabilities - wanted).max()))

    def columns(self) -> list[str]:
        """Equal voxels, Dice, probabilities."""
        return [
            f"{100 * self.equal:.4f} %",
            f"{self.dice:.5f}" if self.dice <= 1 else "empty",
            f"{self.probabilities:.1e}",
        ]


def compare(root: Path, name: str, run: Path, mirror: bool) -> tuple[str, float, float]:
    """A row of the table; our and nnU-Net's processor seconds."""
    model = MODELS[name]
    raw = root / "raw" / f"Dataset{NUMBERS[model.dataset]}_{model.dataset}"
    facts = json.loads((raw / "dataset.json").read_text())
    ending, kind = facts["file_ending"], "mirrored" if mirror else "plain"
    channels = len(facts["channel_names"]) if ending != ".png" else 1
    found = {how: Difference() for how in SUMS}
    folders = {how: root / "masks" / name / f"{prefix}{kind}" for how, prefix in SUMS.items()}
    cases = sorted(path.name.removesuffix(ending) for path in folders["half"].glob(f"*{ending}"))
    predictor, seconds = medmamba.Predictor(run, mirror=mirror, configuration=model.configuration), 0.0
    for case in cases:
        files = [raw / "imagesTs" / f"{case}_{number:04d}{ending}" for number in range(channels)]
        started = time.process_time()
        mask = predictor.predict(files if channels > 1 else files[0], probabilities=True)
        seconds += time.process_time() - started
        for how, folder in folders.items():
            found[how].see(mask.labels, mask.probabilities, folder, f"{case}{ending}")
    columns = [name, "yes" if mirror else "no", str(len(cases)), f"{100 * found['half'].marked:.1f} %"]
    row = f"| {' | '.join([*columns, *found['half'].columns(), *found['float32'].columns()])} |"
    return row, seconds, float((folders["half"] / "seconds.txt").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [HEAD]
    print(HEAD)
    for name in given.names or MODELS:
        if not (given.folder / "masks" / name / "float32_plain").is_dir():
            lines.append(f"| {name} | not trained |{' |' * 8}")
            print(lines[-1], flush=True)
            continue
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
