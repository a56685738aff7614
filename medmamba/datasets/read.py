"""From a folder to a DatasetSpec: which layout it is, and what its description says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from medmamba.datasets.decathlon import read_decathlon
from medmamba.datasets.spec import DatasetSpec
from medmamba.datasets.strict_json import read_json
from medmamba.errors import InputError, InputErrors
from medmamba.images import ending_of
from medmamba.images.gate import shown


def read_dataset(folder: Path | str, *, strict: bool = True) -> DatasetSpec:
    """The description of a dataset, read and checked; no voxel is looked at.

    Args:
        strict: raise when the description has problems. Otherwise they stand in ``spec.problems``, so that
            :func:`~medmamba.datasets.check_dataset` can report them together with those of the images.

    Raises:
        InputError: there is no dataset, or its description cannot be understood at all.
        InputErrors: the description has problems; one line each.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{shown(folder)}: no such folder. Give the folder that holds dataset.json.")
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: a file, not a folder. Give the folder that holds dataset.json.")
    description = folder / "dataset.json"
    if not description.exists():
        near = sorted(path.parent.name for path in folder.glob("*/dataset.json"))
        hint = f" There is one in {shown(folder / near[0])}." if near else ""
        raise InputError(f"{shown(folder)}: no dataset.json in this folder.{hint} Give the folder that holds it.")
    raw = read_json(description)
    if not isinstance(raw, dict):
        raise InputError(f"{shown(description)}: an object with keys is needed, not a {type(raw).__name__}.")
    if "training" not in raw:
        raise InputError(
            f"{shown(description)}: no list of training cases. In the layout of the Medical Segmentation Decathlon "
            'it stands under "training".'
        )
    spec = read_decathlon(folder, raw)
    spec = replace(spec, warnings=(*spec.warnings, *_unlisted(spec)))
    if strict and spec.problems:
        raise InputErrors(spec.problems, summary=f"{shown(folder)}: {len(spec.problems)} problem(s) in dataset.json.")
    return spec


def _unlisted(spec: DatasetSpec) -> list[str]:
    """Image files beside the listed ones that belong to no case."""
    listed = {path for case in (*spec.cases, *spec.test) for path in (*case.images, case.label) if path is not None}
    warnings = []
    for folder in sorted({path.parent for case in spec.cases for path in (*case.images, case.label) if path}):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue  # each missing file is named when it is read
        strays = [n for n in names if not n.startswith(".") and ending_of(n) and folder / n not in listed]
        if strays:
            warnings.append(
                f"{spec.shown(folder)}: {len(strays)} image file(s) belong to no training case and are not used, the "
                f"first is {shown(strays[0])}."
            )
    return warnings
