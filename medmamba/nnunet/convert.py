"""Trained models of nnU-Net v2 as a run folder: plan, folds, safetensors, and where each of them came from."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medmamba.command_options import ConvertModelOptions
from medmamba.disk.atomic import replace_folder, write_json, write_text
from medmamba.errors import ConfigError, InputError, counted
from medmamba.images.archive import is_zip, unpack
from medmamba.images.gate import shown
from medmamba.models.checkpoint import file_sha256, save_checkpoint
from medmamba.models.network import network_arguments
from medmamba.models.prediction_setup import PREDICTION_SETUP
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import MODEL_FACTS, ModelFacts
from medmamba.networks.build import build_network
from medmamba.nnunet.checkpoint_file import CheckpointFile
from medmamba.nnunet.decisions import fingerprint_of, setup_of, splits_of
from medmamba.nnunet.results_folder import TrainedFolder, find_trained
from medmamba.nnunet.weights import load_their_weights, u_mamba_of
from medmamba.nnunet.write_results import WrittenResults, write_results
from medmamba.plans.nnunet_trained import joined_plan, trained_plan, trained_with
from medmamba.plans.schema import Plan

OnItem = Callable[[int, int], None]


@dataclass(frozen=True)
class ConvertedModel:
    """What was made: the folds of each configuration, and what to know about them, a sentence each."""

    run: Path
    folds: dict[str, list[str]]
    notes: list[str]


@dataclass(frozen=True)
class _Facts:
    """The entries of a checkpoint that are not weights."""

    trainer: str
    mirror_axes: tuple[int, ...]
    network: str | None
    """U-Mamba's network; None: the one in the plans."""
    plans: dict[str, dict[str, str]]
    """Of each fold: what of its own plans decides masks."""


def convert_model(
    source: Path,
    output: Path,
    options: ConvertModelOptions | None = None,
    *,
    on_fold: OnItem = lambda done, total: None,
    **choices: Any,
) -> ConvertedModel | WrittenResults:
    """Write a run folder with the trained models in nnU-Net's results; or results for nnU-Net from a run folder.

    Args:
        source: a folder TRAINER__PLANS__CONFIGURATION, one that holds several, or a zip that nnU-Net exported; or a run
            folder.
        on_fold: called with the number of folds that are done, and of all.
        choices: single options by name.

    Raises InputError or ConfigError, with nothing written, for what cannot be converted to the same masks.
    """
    options = ConvertModelOptions.of(options, **choices)
    if output.exists():
        raise InputError(f"{shown(output)}: exists already. Choose another folder, or remove it.")
    if (source / "plan.json").is_file():
        return write_results(source, output, on_fold=on_fold)
    with tempfile.TemporaryDirectory(
        prefix="medmamba-", dir=output.absolute().parent if is_zip(source) else None
    ) as place:
        if is_zip(source):
            unpack(source, Path(place))
        found = find_trained(Path(place) if is_zip(source) else source, options.which, options.checkpoint)
        return _converted(found, shown(source.absolute().name), output, on_fold)


def _converted(found: list[TrainedFolder], source: str, output: Path, on_fold: OnItem) -> ConvertedModel:
    facts = {each.configuration: _facts_of_folds(each) for each in found}
    plans = {
        each.path.name: trained_plan(
            each.read("plans.json"),
            each.read("dataset.json"),
            each.configuration,
            facts[each.configuration].mirror_axes,
            network=facts[each.configuration].network,
            source=shown(each.path / "plans.json"),
        )
        for each in found
    }
    for each in found:
        _refuse_other_plans(each, facts[each.configuration])
    plan = joined_plan(plans)
    for name, part in plan.configurations.items():
        if name in facts and part.previous_stage is not None and part.previous_stage not in facts:
            raise ConfigError(
                f"{source}: {name} needs the first stage {part.previous_stage}. Give the folder that holds both."
            )
    setup, notes = setup_of(found, plan)
    splits, fingerprint = splits_of(found), fingerprint_of(found[0], plan)
    total, done = sum(len(each.checkpoints) for each in found), 0
    run = RunFolder(output)
    with replace_folder(output) as made:
        write_text(made / run.plan_path.name, plan.to_json())
        if setup is not None:
            write_text(made / PREDICTION_SETUP, setup.sealed_json())
        if splits is not None:
            write_json(made / run.splits_path.name, splits)
        for each in found:
            for fold in each.checkpoints:
                folder = _write_fold(made, plan, each, fold, facts[each.configuration].trainer, source)
                if fingerprint is not None:
                    write_text(folder / run.fingerprint_path.name, fingerprint.to_json())
                done += 1
                on_fold(done, total)
    folds = {each.configuration: list(each.checkpoints) for each in found}
    return ConvertedModel(output, folds, _notes(found, facts) + notes)


def _facts_of_folds(trained: TrainedFolder) -> _Facts:
    """What the checkpoints of all folds say; raises ConfigError where they contradict each other or the folder."""
    facts = {}
    for fold, path in trained.checkpoints.items():
        with CheckpointFile(path) as file:
            facts[fold] = _facts(file, trained, fold)
    (first, wanted), *others = facts.items()
    for fold, other in others:
        if (other.trainer, other.mirror_axes, other.network) != (wanted.trainer, wanted.mirror_axes, wanted.network):
            raise ConfigError(
                f"{shown(trained.path)}: {first} and {fold} differ in trainer or mirroring. Convert them apart."
            )
    return replace(wanted, plans={fold: one.plans[fold] for fold, one in facts.items()})


def _refuse_other_plans(trained: TrainedFolder, facts: _Facts) -> None:
    """Raises ConfigError for a fold that was trained with other plans than those of the folder."""
    here = trained_with(json.loads(trained.read("plans.json")), trained.configuration)
    for fold, plans in facts.plans.items():
        if differing := [name for name, value in plans.items() if here.get(name, value) != value]:
            raise ConfigError(
                f"{shown(trained.path)}: {fold} was trained with other plans than plans.json (they differ in "
                f"{differing[0]}). Restore the file, or move the fold away."
            )


def _facts(file: CheckpointFile, trained: TrainedFolder, fold: str) -> _Facts:
    content = file.content
    if not isinstance(content, dict) or not isinstance(content.get("network_weights"), dict):
        raise InputError(
            f"{file.where}: no checkpoint of nnU-Net 2 (network_weights is missing). Give one that it wrote."
        )
    arguments = content.get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, dict) else None
    if name != trained.configuration:
        raise ConfigError(
            f"{file.where}: was trained as {shown(str(name))[:60]}, not {trained.configuration}. Restore the folder."
        )
    trainer, axes = content.get("trainer_name"), content.get("inference_allowed_mirroring_axes") or ()
    if (
        not isinstance(trainer, str)
        or not isinstance(axes, tuple | list)
        or not all(axis in (0, 1, 2) for axis in axes)
    ):
        raise InputError(
            f"{file.where}: no trainer_name, or unknown mirroring axes. Give a checkpoint that nnU-Net wrote."
        )
    plans = arguments.get("plans") if isinstance(arguments, dict) else None
    known = trained_with(plans, trained.configuration) if isinstance(plans, Mapping) else {}
    network = u_mamba_of(content["network_weights"], file.where)
    return _Facts(trainer, tuple(sorted(axes)), network, {fold: known})


def _write_fold(run: Path, plan: Plan, trained: TrainedFolder, fold: str, trainer: str, source: str) -> Path:
    """The folder of a fold that was written."""
    configuration = plan.configurations[trained.configuration]
    arguments = network_arguments(plan, configuration)
    with torch.random.fork_rng(devices=[]):
        network = build_network(**arguments)
    path = trained.checkpoints[fold]
    with CheckpointFile(path) as file:
        load_their_weights(file, file.content["network_weights"], network, trainer)
    folder = RunFolder(run).fold(trained.configuration, fold.removeprefix("fold_"))
    facts = ModelFacts(plan.hash(), trained.configuration, arguments, fold.removeprefix("fold_"))
    write_text(folder / "plan.json", plan.to_json())
    write_json(folder / MODEL_FACTS, facts.as_json())
    origin = {
        "source": source,
        "trainer": trainer,
        "checkpoint": f"{fold}/{path.name}",
        "sha256": {
            path.name: file_sha256(path),
            "plans.json": file_sha256(trained.path / "plans.json"),
            "dataset.json": file_sha256(trained.path / "dataset.json"),
        },
    }
    save_checkpoint(folder / "checkpoints", network, None, {"progress": {}, "converted_from": origin})
    return folder


def _notes(found: list[TrainedFolder], facts: Mapping[str, _Facts]) -> list[str]:
    notes = []
    for each in found:
        known = facts[each.configuration]
        mirrored = f"mirrored along {', '.join(map(str, known.mirror_axes))}" if known.mirror_axes else "not mirrored"
        notes.append(f"{each.configuration}: {counted(len(each.checkpoints), 'fold')} of {known.trainer}, {mirrored}")
        if missing := each.missing_folds():
            notes.append(f"{each.configuration}: without {', '.join(missing)}, which holds no such checkpoint")
        if (each.path / "fold_all").is_dir() and "fold_all" not in each.checkpoints:
            notes.append(f"{each.configuration}: without fold_all, because numbered folds predict")
    return notes
