"""The record beside a model's weights (model.json): its plan, its configuration, and how to build its network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medmamba.errors import ConfigError

FILE = "model.json"


@dataclass(frozen=True)
class ModelFacts:
    """What must be known to use a model's weights; stored as model.json and in every checkpoint.

    Attributes:
        plan_sha256: hash of the plan that it was trained with.
        configuration: of that plan.
        network: arguments of :func:`medmamba.networks.build_network`, plain numbers.
        fold: number of the fold, "all" or "pretrained".
        heads: names of the output channels where these are not the plan's (pretraining).
        state_dict: in a bundle, the file that holds the weights of all models, relative to this record.
        prefix: in a bundle, what the names of this model's tensors begin with in that file.
    """

    plan_sha256: str
    configuration: str
    network: dict[str, Any]
    fold: str = ""
    heads: list[str] | None = None
    state_dict: str | None = None
    prefix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Without the fields that say nothing."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def read_model_facts(folder: Path) -> ModelFacts:
    """The record of a model's folder; raises ConfigError where there is none."""
    path = folder / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: not a trained fold ({error}). Run `medmamba train` first.") from error
    if not isinstance(stored, dict) or not {"network", "configuration", "plan_sha256"} <= set(stored):
        raise ConfigError(f"{path}: not the record of a trained fold. Restore the file.")
    return ModelFacts(**{field.name: stored[field.name] for field in fields(ModelFacts) if field.name in stored})
