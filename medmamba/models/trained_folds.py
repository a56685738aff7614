"""Trained folds on disk: their records (model.json), weights, and the selection of folds for prediction."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from medmamba.errors import ConfigError, InputError, unknown_name
from medmamba.models.bundle_parts import METADATA, check_parts
from medmamba.models.checkpoint import load_checkpoint, weights_sha256
from medmamba.models.prediction_setup import PredictionSetup, read_prediction_setup
from medmamba.models.run_folder import RunFolder
from medmamba.networks.weight_file import read_weight_file
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.folds import Fold
from medmamba.plans.json_record import as_written, read_stored

MODEL_FACTS = "model.json"


@dataclass(frozen=True)
class ModelFacts:
    """What must be known to use a model's weights; stored as model.json and in every checkpoint.

    Attributes:
        network: arguments of :func:`medmamba.networks.build_network`, plain numbers.
        fold: number of the fold, "all" or "pretrained".
        cases_sha256: hash of the case ids that it is trained and validated with (:func:`hash_of_cases`); None: written
            by an earlier version, or no fold.
        heads: names of the output channels where these are not the plan's (pretraining).
        state_dict: in a bundle, the file that holds the weights of all models, relative to this record; the names of
            this model's tensors begin with ``prefix`` there, and ``weights_sha256`` is their hash.
    """

    plan_sha256: str
    configuration: str
    network: dict[str, Any]
    fold: str = ""
    cases_sha256: str | None = None
    heads: list[str] | None = None
    state_dict: str | None = None
    prefix: str = ""
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.state_dict is not None and re.fullmatch(r"\.\./\.\./[\w-][\w.-]*", self.state_dict) is None:
            raise ValueError(f"state_dict {self.state_dict!r} leads out of the bundle")

    def as_json(self) -> dict[str, Any]:
        """Without the fields that say nothing."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def read_model_facts(folder: Path) -> ModelFacts:
    """The record of a model's folder; raises ConfigError where there is none."""
    cure = "Restore the file, or run `medmamba train`."
    return read_stored(folder / MODEL_FACTS, ModelFacts, "record of a trained fold", cure)


def hash_of_cases(fold: Fold) -> str:
    """SHA-256 of the cases that a fold trains on and is validated with, in any order."""
    return sha256(json.dumps([sorted(fold["train"]), sorted(fold["val"])]).encode()).hexdigest()


def refuse_other_cases(folder: Path, fold: Fold) -> None:
    """Raises InputError if a trained fold now has other cases than it was trained with, by an edited splits.json."""
    if read_model_facts(folder).cases_sha256 not in (None, hash_of_cases(fold)):
        raise InputError(
            f"{folder}: was trained with other cases than splits.json gives this fold now. Restore splits.json, or "
            "train the fold again with --restart."
        )


@dataclass(frozen=True)
class Selection:
    """Folders of trained folds by configuration, the recipe of ``find-best`` if it is used, and warnings."""

    folders: dict[str, list[Path]]
    recipe: PredictionSetup | None
    warnings: tuple[str, ...]


def select_models(
    model: Path,
    configuration: str | Sequence[str] | None,
    folds: Sequence[int | str] | None,
    *,
    strict: bool = False,
) -> Selection:
    """The folds that answer: one fold's folder, those of a run, or those of a bundle.

    Of a run, ``configuration`` is one name or several (an ensemble); without it, what `medmamba find-best` chose, or
    the plan's default. ``strict`` refuses a run in which folds of the cross-validation are missing.
    """
    if is_fold(model):
        return Selection({read_model_facts(model).configuration: [model]}, None, ())
    if not model.is_dir():
        raise InputError(f"{model}: not found. Give a run folder or the folder of a trained fold.")
    if is_bundle(model):  # beside a first stage, which does not predict alone
        held = names = list(_settings(model)["configuration"])
        recipe = read_prediction_setup(model / "models")
        if recipe is not None and recipe.hash() != _settings(model)["recipe_sha256"]:
            raise ConfigError(f"{model / 'models'}: best.json was altered after the export. Copy the bundle again.")
    else:
        plan, recipe = RunFolder(model).read_plan(), read_prediction_setup(model)
        held = list(plan.configurations)
        names = recipe.configurations if recipe else [plan.default_configuration]
    if configuration is not None:
        names = [configuration] if isinstance(configuration, str) else list(configuration)
    folders, warnings = {}, []
    for name in names:
        if name not in held:
            raise unknown_name("configuration", name, held)
        folders[name], warning = _folds_of(model, name, folds)
        if warning and strict:
            raise InputError(f"{model}: {warning}. Train the missing folds, or leave out --strict.")
        warnings += [warning] if warning else []
    warnings += check_parts(model) if is_bundle(model) else ()
    fits = recipe is not None and sorted(recipe.configurations) == sorted(names)
    return Selection(folders, recipe if fits else None, tuple(warnings))


def is_fold(path: Path) -> bool:
    """Whether a folder is one trained fold."""
    return (path / MODEL_FACTS).is_file()


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle of `medmamba export`."""
    return (path / METADATA).is_file() and any(path.glob("models/*/fold_*/model.json"))


def has_weights(fold: Path) -> bool:
    """Whether a fold can predict: it has checkpoints of its own, or its weights are in a bundle's file."""
    return (fold / "checkpoints" / "last").exists() or (is_fold(fold) and read_model_facts(fold).state_dict is not None)


def mirrors_by_default(model: Path) -> bool:
    """Whether a model averages over mirrorings by default: yes, unless it is a bundle that was exported without."""
    return not is_bundle(model) or bool(_settings(model)["mirror"])


def _settings(bundle: Path) -> dict[str, Any]:
    """The settings of an exported model."""
    path = bundle / METADATA
    kind, cure = "metadata of a bundle", "Export again."
    metadata = read_stored(path, dict[str, Any], kind, cure)
    with as_written(path, kind, cure):
        settings = metadata["medmamba"]["settings"]
        return {
            "mirror": settings["mirror"],
            "configuration": [str(name) for name in settings["configuration"]],
            "recipe_sha256": metadata["medmamba"]["recipe_sha256"],
        }


def load_weights(folder: Path, network: nn.Module) -> None:
    """The weights of a fold's folder; of a bundle's fold from the one file that holds all of them."""
    facts = read_model_facts(folder)
    if facts.state_dict is None:
        load_checkpoint(folder / "checkpoints", network, generation=generation_of(folder))
        return
    state = _shared_state(folder / facts.state_dict, facts.prefix)
    if facts.weights_sha256 not in (None, sha256(save(state)).hexdigest()):
        where = (folder / facts.state_dict).resolve()
        raise ConfigError(f"{where}: these are not the weights that were exported (SHA-256). Copy the bundle again.")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"{folder}: the weights do not fit its network. Export the bundle again.") from error


def hash_of_weights(folder: Path) -> str:
    """SHA-256 of a fold's weights as a safetensors file: the same in a run and in a bundle made of it."""
    facts = read_model_facts(folder)
    if facts.state_dict is not None:
        return sha256(save(_shared_state(folder / facts.state_dict, facts.prefix))).hexdigest()
    return weights_sha256(folder / "checkpoints" / generation_of(folder))


def _shared_state(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of one fold in a bundle's models/model.pt, named as in the fold."""
    everything = read_weight_file(path, mapped=True)
    return {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}


def _folds_of(model: Path, name: str, folds: Sequence[int | str] | None) -> tuple[list[Path], str]:
    """The chosen folds of a configuration, and a warning when folds of the cross-validation are missing."""
    trained = sorted(path for path in model.glob(f"models/{name}/fold_*") if has_weights(path))
    if not trained:
        raise InputError(f"{model}: no trained fold of {name}. Run `medmamba train {model}` first.")
    if folds is not None:
        wanted = {f"fold_{fold}" for fold in folds}
        if missing := sorted(wanted - {path.name for path in trained}):
            there = ", ".join(path.name for path in trained)
            raise InputError(f"{model}: {', '.join(missing)} of {name} not trained. Choose among {there}, or train it.")
        return [path for path in trained if path.name in wanted], ""
    run = RunFolder(model)
    numbered = [path for path in trained if path.name != "fold_all"]
    planned = len(run.read_splits()) if run.splits_path.is_file() else len(numbered)
    missing_some = len(numbered) < planned and len(numbered) == len(trained)
    return trained, f"{len(numbered)} of {planned} folds of {name} are trained and used" if missing_some else ""


def generation_of(folder: Path) -> str:
    """The checkpoint that predicts: the best by validation where there is one, else the last."""
    return "best" if (folder / "checkpoints" / "best" / "state.json").exists() else "last"


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The training fingerprint that travels with a fold, or that of its run; None when there is neither."""
    for path in (folder / "fingerprint.json", *(parent / "fingerprint.json" for parent in list(folder.parents)[:3])):
        if path.is_file():
            return Fingerprint.read(path)
    return None
