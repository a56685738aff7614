"""What tests of training read from the folder of a fold, and options of a run of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

from medmamba.models.checkpoint import read_state

SHORT = {"steps_per_epoch": 2, "workers": 0, "warmup_steps": 0}


def fold_of(run: Path, fold: int | str = 0) -> Path:
    return run / "models" / "3d_fullres" / f"fold_{fold}"


def hashes_of(run: Path, fold: int | str = 0) -> dict[str, str]:
    """SHA-256 of the files of the last checkpoint, by name."""
    return read_state(fold_of(run, fold) / "checkpoints" / "last")["sha256"]


def epoch_losses(run: Path) -> list[str]:
    return [row["loss"].hex() for row in json.loads((fold_of(run) / "metrics.json").read_text())]
