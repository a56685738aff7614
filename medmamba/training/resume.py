"""What a resumed fold must have in common with the one that was begun: its recipe, its plan, its network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medmamba.errors import ConfigError
from medmamba.models.run_folder import RunFolder, read_plan
from medmamba.models.trained_folds import read_model_facts
from medmamba.networks.planned.one_block_unet import is_one_block
from medmamba.plans.explain import compare
from medmamba.plans.schema import Plan
from medmamba.training.config import TrainConfig


def stored_config(run: str | Path, *, fold: int | str = 0, configuration: str | None = None) -> TrainConfig:
    """The recipe that a fold was last trained with; raises ConfigError when there is none."""
    folder = RunFolder(Path(run))
    path = folder.fold(configuration or folder.read_plan().default_configuration, fold) / "train.json"
    try:
        return TrainConfig.model_validate_json(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path.parent}: nothing to resume here. Train without --resume first.") from error
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe. Begin again with --restart.") from error


def arguments_to_resume(target: Path, plan: Plan, arguments: dict[str, Any]) -> dict[str, Any]:
    """The network arguments of a fold to be resumed: ``arguments``, or those of an earlier version's convolution U-Net.

    Raises ConfigError when it was trained with another plan or network, naming what differs.
    """
    before = read_plan(target / "plan.json")
    if before.hash() != plan.hash():
        fields = [f"{field}: {old} then, {new} now" for field, old, new in compare(before, plan)][:3]
        raise ConfigError(
            f"{target}: was trained with another plan ({'; '.join(fields) or 'other reasons, same numbers'}). Restore "
            f"the old plan.json of the run, or begin again with --restart."
        )
    stored = read_model_facts(target).network
    if is_one_block(stored):
        arguments = {key: value for key, value in arguments.items() if key != "decoder_convs"}
        arguments["blocks_per_stage"] = stored["blocks_per_stage"]  # they were never built
    blocks = stored.get("blocks_per_stage") or [None]
    if arguments["name"] == stored["name"] == "u_mamba_bot" and arguments["blocks_per_stage"][-1] == blocks[-1]:
        arguments = {**arguments, "blocks_per_stage": blocks}  # it builds the coarsest stage's alone
    wanted = json.loads(json.dumps(arguments))
    changed = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if changed:
        raise ConfigError(
            f"{target}: was trained with another network ({', '.join(changed)} differ). Give the same --network and "
            f"--no-scan as then, or begin again with --restart."
        )
    return arguments
