"""Where things are in a run folder.

    RUN/plan.json  fingerprint.json  splits.json
    RUN/preprocessed/<configuration>/<case>/
    RUN/models/<configuration>/fold_<k>/   plan.json model.json train.json metrics.csv checkpoints/

A fold's folder holds its own copy of the plan, so it can be moved away and still predicts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medmamba.errors import InputError
from medmamba.plans.schema import Plan


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def fingerprint_path(self) -> Path:
        return self.path / "fingerprint.json"

    @property
    def splits_path(self) -> Path:
        return self.path / "splits.json"

    @property
    def preprocessed_path(self) -> Path:
        return self.path / "preprocessed"

    def preprocessed(self, configuration: str) -> Path:
        return self.preprocessed_path / configuration

    def fold(self, configuration: str, fold: int | str) -> Path:
        return self.path / "models" / configuration / f"fold_{fold}"

    def trained_folds(self, configuration: str) -> list[Path]:
        """Folders of the folds that have a checkpoint."""
        return sorted(path.parent.parent for path in self.path.glob(f"models/{configuration}/fold_*/checkpoints/last"))

    def read_plan(self) -> Plan:
        """The plan of this run, checked."""
        return read_plan(self.plan_path)

    def read_splits(self) -> list[dict[str, list[str]]]:
        """Training and validation case ids of each fold."""
        try:
            return json.loads(self.splits_path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.splits_path}: cannot be read ({error}). Run `medmamba plan` again.") from error


def read_plan(path: Path) -> Plan:
    """Read and check a plan file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found. Give the folder that `medmamba plan DATASET -o RUN` wrote.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    return Plan.from_json(text, source=str(path))
