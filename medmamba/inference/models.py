"""Which trained folds of which configurations answer together, and what the run has learnt about using them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmamba.errors import ConfigError, InputError, unknown_name
from medmamba.inference.postprocess import Recipe, read_recipe
from medmamba.plans.fingerprint import Fingerprint
from medmamba.run_folder import RunFolder


@dataclass(frozen=True)
class Selection:
    """The folders of the trained folds by configuration, the recipe of ``find-best`` if it is used, and remarks."""

    folders: dict[str, list[Path]]
    recipe: Recipe | None
    remarks: tuple[str, ...]


def select_models(
    model: Path,
    configuration: str | Sequence[str] | None,
    folds: Sequence[int | str] | None,
    *,
    strict: bool = False,
) -> Selection:
    """The folds that answer: one fold's folder, or those of a run.

    Of a run, ``configuration`` is one name or several (an ensemble); without it, what `medmamba find-best` chose, or
    the plan's default. ``strict`` refuses a run in which folds of the cross-validation are missing.
    """
    if (model / "model.json").is_file():
        return Selection({read_model_facts(model)["configuration"]: [model]}, None, ())
    if not model.is_dir():
        raise InputError(f"{model}: not found. Give a run folder or the folder of a trained fold.")
    run = RunFolder(model)
    plan = run.read_plan()
    recipe = read_recipe(model)
    if configuration is None:
        names = list(recipe.configurations) if recipe else [plan.default_configuration]
    else:
        names = [configuration] if isinstance(configuration, str) else list(configuration)
        recipe = recipe if recipe and sorted(recipe.configurations) == sorted(names) else None
    folders, remarks = {}, []
    for name in names:
        if name not in plan.configurations:
            raise unknown_name("configuration", name, list(plan.configurations))
        folders[name], remark = _folds_of(run, name, folds)
        if remark and strict:
            raise InputError(f"{model}: {remark}. Train the missing folds, or leave out --strict.")
        remarks += [remark] if remark else []
    return Selection(folders, recipe, tuple(remarks))


def _folds_of(run: RunFolder, name: str, folds: Sequence[int | str] | None) -> tuple[list[Path], str]:
    trained = run.trained_folds(name)
    if folds is not None:
        wanted = {f"fold_{fold}" for fold in folds}
        missing = wanted - {path.name for path in trained}
        if missing:
            raise InputError(
                f"{run.path}: {', '.join(sorted(missing))} of {name} not trained. Train it, or leave it out."
            )
        return [path for path in trained if path.name in wanted], ""
    if not trained:
        raise InputError(f"{run.path}: no trained fold of {name}. Run `medmamba train {run.path}` first.")
    numbered = [path for path in trained if path.name != "fold_all"]
    planned = len(run.read_splits()) if run.splits_path.is_file() else len(numbered)
    if numbered and len(numbered) < planned and len(numbered) == len(trained):
        return trained, f"{len(numbered)} of {planned} folds of {name} are trained and used"
    return trained, ""


def read_model_facts(folder: Path) -> dict[str, Any]:
    """The network arguments and plan hash that a fold was trained with."""
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: not a trained fold ({error}). Run `medmamba train` first.") from error
    if not isinstance(facts, dict) or not {"network", "configuration", "plan_sha256"} <= set(facts):
        raise ConfigError(f"{folder / 'model.json'}: not the record of a trained fold. Restore the file.")
    return facts


def generation_of(folder: Path) -> str:
    """The checkpoint that predicts: the best by validation where there is one, else the last."""
    return "best" if (folder / "checkpoints" / "best" / "state.json").exists() else "last"


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The training fingerprint that travels with a fold, or that of its run; None when there is neither."""
    for path in (folder / "fingerprint.json", *(parent / "fingerprint.json" for parent in list(folder.parents)[:3])):
        if path.is_file():
            try:
                return Fingerprint.from_json(path.read_text(encoding="utf-8"), source=str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: cannot be read ({error}).") from error
    return None
