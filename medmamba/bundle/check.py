"""The check of a bundle: MONAI's own commands, in a process that cannot import medmamba, give the model's masks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medmamba.errors import InputError, MedmambaError

if TYPE_CHECKING:
    from medmamba.images.cases import ImageCase
    from medmamba.inference.predictor import Predictor

LAST_LINES = 12
"""Of what a failed process printed."""

# `python -m monai.bundle run` and its two checks, where an import of medmamba fails as if it were not installed.
COMMANDS = """
import runpy, sys
sys.modules["medmamba"] = None
import monai.bundle
monai.bundle.verify_metadata(meta_file="configs/metadata.json", filepath=sys.argv[1])
monai.bundle.verify_net_in_out(net_id="network_def", meta_file="configs/metadata.json",
    config_file="configs/inference.json", device="cpu", n=4)  # of the spatial shapes in metadata.json
print("verify_metadata and verify_net_in_out passed", flush=True)
sys.argv = ["monai.bundle", "run", "--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json",
    "--logging_file", "configs/logging.conf", "--bundle_root", ".", "--dataset_dir", sys.argv[2],
    "--output_dir", sys.argv[3]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
assert sys.modules["medmamba"] is None
"""


class BundleError(MedmambaError):
    """The bundle gives other results than the model; it was not kept."""


@dataclass(frozen=True)
class ComparedCase:
    """One real case predicted by both."""

    case_id: str
    voxels: int
    foreground: int


def run_in_monai(bundle: Path, images: Path, masks: Path) -> str:
    """Run the three commands from the bundle's root; returns what they printed."""
    failure = f"{bundle}: MONAI could not run the bundle, so it was not kept"
    schema = str(files("medmamba.bundle") / "schema.json")  # MONAI would fetch one
    result = run_python(COMMANDS, bundle, schema, str(images.resolve()), str(masks.resolve()), failure=failure)
    return result.stdout + result.stderr


def run_python(code: str, folder: Path, *arguments: str, failure: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, in ``folder``. Raises BundleError with the last lines it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-B", "-c", code, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        printed = (result.stdout + result.stderr).strip().splitlines()
        raise BundleError(f"{failure}: " + " | ".join(line.strip() for line in printed[-LAST_LINES:]))
    return result


def compare_with_native(predictor: Predictor, cases: Sequence[ImageCase], masks: Path) -> list[ComparedCase]:
    """Predict every case with medmamba and compare with the bundle's mask, voxel for voxel and grid for grid.

    Raises BundleError for the first difference.
    """
    from medmamba.geometry import grid_difference
    from medmamba.images import read_channels, read_label_map, stem_of

    checked = []
    for case in cases:
        image = read_channels(case.paths, predictor.reading)
        native = predictor.predict(image)
        found = [path for path in masks.iterdir() if stem_of(path) in (case.case_id, stem_of(case.paths[0]))]
        if len(found) != 1:
            raise BundleError(f"{case.case_id}: the bundle wrote {len(found)} masks for this case, expected 1.")
        mask = read_label_map(found[0])
        if difference := grid_difference(native.grid, mask.grid):
            raise BundleError(f"{case.case_id}: image and the bundle's mask {difference}. The bundle was not kept.")
        expected = np.asarray(native.labels)
        different = np.argwhere(mask.array != expected)
        if len(different):
            place = tuple(different[0].tolist())
            raise BundleError(
                f"{case.case_id}: {len(different)} of {expected.size} voxels differ between the bundle and medmamba, "
                f"the first at {place}: {mask.array[place]} instead of {expected[place]}. The bundle was not kept."
            )
        checked.append(ComparedCase(case.case_id, int(expected.size), int((expected != 0).sum())))
    if not checked:
        raise InputError("No case to check the bundle on. Give --check-on IMAGES.")
    return checked
