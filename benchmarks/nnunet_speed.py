"""Seconds and memory of the same trained models in medmamba and in nnU-Net, in turn, on the same files.

    python benchmarks/nnunet_models.py DATA FOLDER hippocampus_3d hippocampus_2d cardiac_2d cardiac_3d
    python benchmarks/nnunet_speed.py FOLDER --peer NNUNET/bin/python [NAME ...] [--repeat 3] [-o TABLE.md]

Each turn is a process of its own that predicts all test images of the model, mirrored, from file to file, with one fold
ensemble and float32 networks; starting Python and loading the model are left out. nnU-Net runs its predictor without
worker processes (``predict_from_files_sequential``), its mode with the least processor time. Medians of the turns; no
speed is printed where masks differ in more than one voxel in a thousand.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nnunet_models import MODELS, NUMBERS, results
from prediction_speed import measured, print_to_stderr

MOST_DIFFERENT = 1e-3
HEAD = """| model | cases | threads | | medmamba | nnU-Net | ratio | equal voxels |
|---|---|---|---|---|---|---|---|"""


def source(root: Path, name: str) -> Path:
    """nnU-Net's folder of a trained model."""
    return results(MODELS[name], "resencPlans" if "ResEnc" in MODELS[name].planner else "plainPlans", root)


def images(root: Path, name: str) -> Path:
    """Its test images."""
    return root / "raw" / f"Dataset{NUMBERS[MODELS[name].dataset]}_{MODELS[name].dataset}" / "imagesTs"


def ours(root: Path, name: str, run: Path, masks: Path, threads: int) -> None:
    """Predict with medmamba in this process."""
    import torch

    from medmamba import pipeline
    from medmamba.inference.predictor import Predictor

    torch.set_num_threads(threads)
    predictor = Predictor(run, device="cpu")
    (network, *_) = (runner.network for runner in predictor.model.ensembles[0].runners)
    with measured("medmamba", network, list(images(root, name).iterdir())):
        report = pipeline.predict(predictor, images(root, name), masks, on_message=print_to_stderr)
    assert not report.failed, report.failed


def peer(root: Path, name: str, run: Path, masks: Path, threads: int) -> None:
    """Predict with nnU-Net in this process."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(threads)
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(source(root, name)), tuple(MODELS[name].folds))
    with measured("nnU-Net 2.8.1", predictor.network, list(images(root, name).iterdir())):
        predictor.predict_from_files_sequential(str(images(root, name)), str(masks))


SIDES = {"medmamba": ours, "nnunet": peer}


def turn(side: str, root: Path, name: str, place: Path, threads: int, python: str) -> dict[str, Any]:
    """One process of one side; what it measured."""
    masks = place / side
    shutil.rmtree(masks, ignore_errors=True)
    masks.mkdir()
    environment = {key: value for key, value in os.environ.items() if side == "medmamba" or key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "nnUNet_compile": "f"}
    environment |= {f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed", "results")}
    arguments = [__file__, str(root), name, "--turn", side, "--place", str(place), "--threads", str(threads)]
    ran = subprocess.run([python, *arguments], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return next(json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"system"'))


def equal_voxels(place: Path) -> float:
    """Share of equal voxels in the case where it is smallest."""
    from medmamba.images import read_label_map

    shares = []
    for path in sorted((place / "nnunet").iterdir()):
        if path.name.endswith((".nii.gz", ".png")):
            pair = [read_label_map(place / side / path.name).array for side in SIDES]
            shares.append(float((pair[0] == pair[1]).mean()))
    return min(shares)


def rows(root: Path, name: str, threads: int, python: str, repeat: int) -> list[str]:
    """The table's lines of a model with so many threads."""
    from medmamba.nnunet.convert import convert_model

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        cascade = MODELS[name].configuration == "3d_cascade_fullres"
        convert_model(source(root, name).parent if cascade else source(root, name), place / "run")
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(repeat):
            for side in SIDES:
                executable = sys.executable if side == "medmamba" else python
                found[side].append(turn(side, root, name, place, threads, executable))
        equal = equal_voxels(place)
    lines = []
    for key, unit in (("cpu_seconds", "processor s"), ("seconds", "wall s"), ("peak_gib", "peak GiB")):
        mine, theirs = (statistics.median(one[key] for one in found[side]) for side in SIDES)
        shown = f"{mine:.2f} | {theirs:.2f} | {(theirs / mine if key != 'peak_gib' else mine / theirs):.2f}"
        if 1 - equal > MOST_DIFFERENT:
            shown = "masks differ | masks differ |"
        cases = found["medmamba"][0]["cases"]
        lines.append(f"| {name} | {cases} | {threads} | {unit} | {shown} | {100 * equal:.3f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--peer", help="Python of an environment with nnunetv2")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turn", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    root = given.folder.absolute()
    if given.turn:
        run, masks = given.place / "run", given.place / given.turn
        SIDES[given.turn](root, given.names[0], run, masks, given.threads[0])
        return
    if given.peer is None:
        parser.error("--peer is needed")
    lines = [HEAD]
    print(HEAD, flush=True)
    for name in given.names:
        for threads in given.threads:
            for line in rows(root, name, threads, given.peer, given.repeat):
                lines.append(line)
                print(line, flush=True)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
