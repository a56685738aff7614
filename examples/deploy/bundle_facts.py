"""What the application has to know of a bundle: its labels in the order of segment numbers, and its modality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class BundleFacts:
    """Facts of a bundle, given as its folder or as its models/model.ts."""

    def __init__(self, model: Path) -> None:
        self.folder = (model.parents[1] if model.is_file() else model).resolve()
        configs = self.folder / "configs"
        metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
        plan = json.loads((configs / "inference.json").read_text(encoding="utf-8"))["plan"]
        self.name, self.version = metadata["name"], metadata["version"]
        channels, labels = plan["channel_names"], plan["labels"]
        if len(channels) > 1:
            raise SystemExit(f"{self.folder}: the model needs several series as channels, this application reads one.")
        self.modality = "CT" if channels[0].upper() == "CT" else "MR"
        self.labels = {name: labels[name] for name in sorted(labels, key=labels.get) if labels[name] != 0}

    def segment_numbers(self, mask: np.ndarray) -> np.ndarray:
        """A mask of label values as one of segment numbers 1, 2, ..., in the order of the values."""
        return np.searchsorted(np.array([0, *self.labels.values()]), mask).astype(np.uint8)
