"""Reproduction: the masks of a report made again and compared byte by byte."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmamba.errors import ConfigError, InputError
from medmamba.images.cases import find_cases
from medmamba.inference.folder.case_job import input_sha256
from medmamba.inference.folder.run import predict_folder
from medmamba.inference.predictor import Predictor
from medmamba.models.run_folder import is_plan


@dataclass(frozen=True)
class Reproduction:
    """Cases whose masks came out with the same bytes, and those that did not."""

    same: tuple[str, ...]
    other: tuple[str, ...]


def reproduce(
    report: str | Path,
    model: str | Path,
    images: str | Path,
    *,
    cases: Sequence[str] | None = None,
    device: str = "auto",
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Reproduction:
    """Predict the cases of a report.json again, with its settings, and compare the masks byte by byte.

    Raises ConfigError when plan or weights are not those of the report, or its scan backend cannot run here;
    InputError when an image is missing or differs.
    """
    record = _read(Path(report))
    settings = record["model"]["settings"]
    folds = sorted({name.removeprefix("fold_") for names in settings["folds"].values() for name in names})
    backend = settings.get("scan_backend", "auto")  # reports of version 0.1 do not name it
    predictor = Predictor(
        model,
        configuration=settings["configuration"],
        folds=[int(name) if name.isdecimal() else name for name in folds],
        device=device,
        mirror=settings["mirror"],
        fast=settings["fast"],
        tile_batch=settings["tile_batch"],
        precision=settings.get("precision", "fp32"),
        scan_backend="auto" if backend == "none" else backend,  # another one may change single voxels
        patch_size=next(iter(settings["patch_size"].values())) if len(settings["patch_size"]) == 1 else None,
    )
    if not is_plan(predictor.model.ensembles[0].folders[0] / "plan.json", record["model"]["plan_sha256"]):
        raise ConfigError(f"{model}: its plan is not that of {report}. Give the model that made the report.")
    parts = {
        "weights_sha256": "weights are not those",
        "recipe_sha256": "best.json, which find-best writes, is not that",
    }
    for key, part in parts.items():
        if predictor.provenance()[key] != record["model"][key]:
            raise ConfigError(f"{model}: its {part} of {report}. Give the model that made the report.")
    wanted = list(record["cases"]) if cases is None else list(cases)
    inputs = {case.case_id: case for case in find_cases(images)}
    for case_id in wanted:
        if case_id not in record["cases"] or case_id not in inputs:
            where = report if case_id not in record["cases"] else images
            raise InputError(f"{case_id}: not in {where}. Check the name, or give the images of the report.")
        if [input_sha256(path) for path in inputs[case_id].paths] != record["cases"][case_id]["input_sha256"]:
            raise InputError(f"{case_id}: the image is not the one of the report (SHA-256). Give the same file.")
    with tempfile.TemporaryDirectory(prefix="medmamba-") as folder:
        paths = [path for case_id in wanted for path in inputs[case_id].paths]
        done = predict_folder(predictor, paths, folder, on_item=on_item).done
    masks = {case_id: again.mask_sha256 for case_id, again in done.items()}
    same = [case_id for case_id in wanted if masks.get(case_id) == record["cases"][case_id]["mask_sha256"]]
    return Reproduction(tuple(same), tuple(case_id for case_id in wanted if case_id not in same))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema_version"] != 2 or not isinstance(record["cases"], dict):
            raise ValueError(f"schema {record['schema_version']}")
        _ = record["model"]["settings"]["configuration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a prediction report of this version ({error}).") from error
    return record
