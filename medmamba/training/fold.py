"""A fold of a planned run in training: choices checked, network built, folder locked and written, then the loop."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import nn

from medmamba.compute.device import choose_device
from medmamba.disk.atomic import write_bytes, write_json, write_text
from medmamba.disk.leftovers import remove_leftovers
from medmamba.disk.lock import FolderLock
from medmamba.errors import ConfigError, InputError, counted, unknown_name
from medmamba.models.checkpoint import has_checkpoint, refuse_trained
from medmamba.models.network import network_arguments
from medmamba.models.output_channels import OutputChannels, class_weights
from medmamba.models.run_folder import RunFolder, read_plan
from medmamba.models.trained_folds import ModelFacts, hash_of_cases, read_model_facts, refuse_other_cases
from medmamba.networks.build import network_facts, rebuild_network
from medmamba.networks.planned.one_block_unet import is_one_block
from medmamba.plans.decided import changed_decisions
from medmamba.plans.folds import Fold
from medmamba.plans.json_record import read_stored, sealed
from medmamba.plans.schema import Plan
from medmamba.preprocessing.store import CaseReader, stored_cases
from medmamba.training import distributed
from medmamba.training.cascade import ensure_first_stage
from medmamba.training.config import RESOLVED_AT_START, TrainConfig, make_config, refuse_another_recipe
from medmamba.training.epochs import FoldSetup
from medmamba.training.loss_names import LossFunction, find_loss, name_of_loss
from medmamba.training.machine import machine_line, resolved
from medmamba.training.observers import Observer, Observers, TrainingReport, need_tracker, open_tracker, training_pages
from medmamba.training.options import OF_ONE_FOLD, TRACKERS, TrainOptions
from medmamba.training.progress import StepReport, TrainingResult
from medmamba.training.trainer import NO_RECOMPUTE, Training
from medmamba.training.transfer import TransferReport, freeze, initialise


def train(
    run: str | Path,
    options: TrainOptions | None = None,
    *,
    fold: int | str = 0,
    config: TrainConfig | None = None,
    loss: LossFunction | str | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_event: Callable[[str], None] = lambda line: None,
    on_start: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> TrainingResult:
    """Train one fold (a number, or ``"all"`` for every case and no validation) of a planned run.

    Args:
        options: configuration, network, initial weights, resume or restart; folds, devices and hours are not read.
        loss: a function of :class:`medmamba.training.losses.LossInputs`, in place of ``config.loss``; recorded by its
            name, module:function, and not by its code. To resume, a function of a script is given again.
        on_event: called with lines a user should see: back-offs, advice, what an initialisation kept.
        on_start: called with one line: device, precision, scan backend.
        changes: fields of ``options`` and of ``config`` by name, as ``steps=1000``.
    """
    for name in set(changes) - set(OF_ONE_FOLD):
        raise unknown_name("option", name, OF_ONE_FOLD)
    if isinstance(loss, str):
        changes["loss"], loss = loss, None
    recipe = {name: changes.pop(name) for name in list(changes) if name in TrainConfig.model_fields}
    options = TrainOptions.of(options, **changes)
    if config is not None or not options.resume:
        config = TrainConfig.of(config, **recipe)
    if options.resume and options.init is not None:
        raise ConfigError("--resume continues with the run's own weights, --init starts from others. Choose one.")
    folder = RunFolder(Path(run))
    plan = folder.read_plan()
    folder.need_cases(plan)
    name = options.configuration or plan.default_configuration
    if name not in plan.configurations:
        raise unknown_name("configuration", name, list(plan.configurations))
    if options.network is not None:
        network_facts(options.network)  # raises for an unknown one before a case is read
    chosen = plan.configurations[name]
    training, validation = refuse_fold(folder, name, fold, options)
    arguments = network_arguments(plan, chosen, network=options.network, use_scan=options.use_scan)
    target = folder.fold(name, fold)
    stored = stored_config(target) if options.resume else None
    own, where = config, recipe.get("device", "auto") if config is None else config.device
    config = config or make_config(recipe, stored)
    if loss is not None:
        config = config.model_copy(update={"loss": name_of_loss(loss)})
    if stored is not None:
        refuse_another_recipe(stored, config)
        config = config.model_copy(update={field: getattr(stored, field) for field in RESOLVED_AT_START})
        arguments = arguments_to_resume(target, plan, arguments)
    function = loss or find_loss(config.loss)
    if chosen.previous_stage is not None:
        _network(arguments, plan, options, config)  # refused before the first stage is trained, which may take hours
        first = TrainOptions(configuration=chosen.previous_stage, network=options.network, use_scan=options.use_scan)

        def train_first_stage(number: int, resume: bool) -> None:
            of_first = None if resume else own  # what was begun is resumed with its own recipe
            train(
                run, first, fold=number, config=of_first, loss=loss, on_step=on_step, on_event=on_event, resume=resume
            )

        ensure_first_stage(folder, plan, chosen, train_first_stage, device=where, say=on_event)
    own_device = distributed.join(config.device)
    if own_device is not None:
        config = config.model_copy(update={"device": str(own_device)})
    with ExitStack() as stack:
        stack.callback(distributed.leave)
        built, report = _network(arguments, plan, options, config)
        device = choose_device(config.device)
        config = resolved(config, built, device, cascade=chosen.previous_stage is not None, resumed=options.resume)
        split = Fold(train=[case.case_id for case in training], val=[case.case_id for case in validation])
        if options.resume:
            refuse_other_cases(target, split)
        facts = ModelFacts(plan.hash(), name, arguments, str(fold), hash_of_cases(split))
        first_rank = distributed.rank() == 0
        if first_rank:
            stack.enter_context(FolderLock(target))
            begin_folder(folder, plan, target, facts, restart=options.restart)
            if report is not None:
                write_json(target / "init.json", asdict(report))
            elif not options.resume:
                (target / "init.json").unlink(missing_ok=True)
        distributed.from_first(0.0)  # the others continue when the first has the folder to itself
        if first_rank and fold != "all" and not folder.own_files().owns(folder.splits_path):
            counts = f"trains on {counted(len(training), 'case')} and validates on {len(validation)}"
            on_event(f"splits.json was changed after planning: fold {fold} {counts}.")
        for line in [] if report is None else report.lines():
            on_event(line)
        observer, page = Observer(), None
        if first_rank:
            machine = machine_line(config, built, device)
            on_start(machine)
            opened = [open_tracker(name, folder.path, target, config) for name in TRACKERS if getattr(options, name)]
            for tracker in opened:
                stack.callback(tracker.close)
            page = TrainingReport(folder.path, target, plan, config, machine)
            observer = Observers([page, *opened], on_event)
        setup = FoldSetup(plan, chosen, training, validation, target, config, facts, function)
        result = Training(built, setup, observer, resume=options.resume).run(on_step)
        if page is not None:
            page.end(result)
        return result


def refuse_fold(
    folder: RunFolder, configuration: str, fold: int | str, options: TrainOptions
) -> tuple[list[CaseReader], list[CaseReader]]:
    """The stored cases that a fold trains on and is validated with; raises InputError if it cannot be trained."""
    target = folder.fold(configuration, fold)
    cases = _fold_cases(folder, configuration, fold)
    if not (options.resume or options.restart):
        refuse_trained(target / "checkpoints")
    folder.own_files().refuse_foreign(training_pages(folder.path, target), "Remove or rename it.")
    return cases


def _network(
    arguments: dict[str, Any], plan: Plan, options: TrainOptions, config: TrainConfig
) -> tuple[nn.Module, TransferReport | None]:
    """The network that training begins with, and what it took over from another model.

    Raises ConfigError for choices that cannot work: while nothing is trained, and no checkpoint is deleted.
    """
    torch.manual_seed(config.seed)
    built = rebuild_network(arguments)
    report = None if options.init is None else initialise(built, arguments, plan, options.init)
    freeze(built, config.freeze)
    class_weights(OutputChannels.of_plan(plan), config.class_weights)
    if config.recompute and not hasattr(built, "checkpoint_blocks"):
        raise ConfigError(NO_RECOMPUTE)
    choose_device(config.device)
    for name in TRACKERS:
        if getattr(options, name):
            need_tracker(name)
    return built, report


def begin_folder(folder: RunFolder, plan: Plan, target: Path, facts: ModelFacts, *, restart: bool) -> None:
    """Write what a fold or a pretraining begins with, once every choice has proved possible: it may be trained."""
    folder.check_unchanged(plan)
    remove_leftovers(target)
    remove_leftovers(target / "checkpoints")
    if restart:
        rmtree(target / "checkpoints", ignore_errors=True)
    write_text(target / "plan.json", plan.to_json())
    write_json(target / "model.json", sealed(facts.as_json()))
    if folder.fingerprint_path.is_file():  # what images are compared with before a mask of them is trusted
        write_bytes(target / "fingerprint.json", folder.fingerprint_path.read_bytes())


def _fold_cases(folder: RunFolder, configuration: str, fold: int | str) -> tuple[list[CaseReader], list[CaseReader]]:
    """The stored cases that a fold trains on and is validated with."""
    cases = stored_cases(folder.preprocessed(configuration))
    if fold == "all":
        training, validation = sorted(cases), []
    else:
        splits = folder.read_splits()
        if not isinstance(fold, int) or not 0 <= fold < len(splits):
            raise ConfigError(f"Fold {fold!r} does not exist. Use 0 to {len(splits) - 1}, or all.")
        training, validation = splits[fold]["train"], splits[fold]["val"]
        both = set(training) & set(validation)
        if both and set(training) != set(validation):  # of a single patient both parts are the same
            raise InputError(
                f"{folder.splits_path}: fold {fold}: {min(both)} is in train and in val. Remove it from one of them."
            )
        if twice := next((name for part in (training, validation) for name in part if part.count(name) > 1), None):
            raise InputError(f"{folder.splits_path}: fold {fold}: {twice} occurs twice. Name each case once.")
    missing = [case_id for case_id in [*training, *validation] if case_id not in cases]
    if missing:
        raise InputError(
            f"{folder.preprocessed(configuration)}: {len(missing)} case(s) of the split are not preprocessed, the "
            f"first is {missing[0]}. Run `medmamba plan DATASET -o {folder.path} --configurations {configuration}`."
        )
    return [cases[name] for name in training], [cases[name] for name in validation]


def stored_config(fold: Path) -> TrainConfig:
    """The recipe that the fold in this folder was last trained with; raises ConfigError when there is none."""
    if not has_checkpoint(fold / "checkpoints"):
        raise ConfigError(f"{fold}: nothing to resume here. Train without --resume first.")
    return read_stored(fold / "train.json", TrainConfig, "recipe", "Begin again with --restart.")


def arguments_to_resume(target: Path, plan: Plan, arguments: dict[str, Any]) -> dict[str, Any]:
    """The network arguments of a fold to be resumed: ``arguments``, or those of an earlier version's convolution U-Net.

    Raises ConfigError when it was trained with another plan or network, naming what differs.
    """
    facts = read_model_facts(target)
    if changed := changed_decisions(read_plan(target / "plan.json"), plan, facts.configuration):
        raise ConfigError(
            f"{target}: was trained with another plan ({'; '.join(changed)}). Restore the old plan.json of the run, or "
            "begin again with --restart."
        )
    stored = facts.network
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
