"""The verb train: a fold of a planned run, from its stored cases to its model. Imports nothing heavy before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from medmamba.disk.atomic import make_folder, remove_leftovers, write_bytes, write_json, write_text
from medmamba.disk.lock import FolderLock
from medmamba.errors import ConfigError, InputError, unknown_name
from medmamba.models.run_folder import RunFolder

if TYPE_CHECKING:
    from medmamba.plans.schema import Plan
    from medmamba.training.config import TrainConfig
    from medmamba.training.progress import StepReport, TrainingResult

Say = Callable[[str], None]


def train(
    run: str | Path,
    *,
    fold: int | str = 0,
    configuration: str | None = None,
    network: str | None = None,
    use_scan: bool = True,
    config: TrainConfig | None = None,
    resume: bool = False,
    restart: bool = False,
    init: str | Path | None = None,
    trackers: Sequence[str] = (),
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_event: Say = lambda line: None,
) -> TrainingResult:
    """Train one fold (a number, or ``"all"`` for every case and no validation) of a planned run.

    Args:
        init: a trained fold, run or pretrained model whose weights are the start (heads by label name, channels by
            channel name), or published weights that ``medmamba convert weights`` has translated.
        trackers: further places for the metrics: "tensorboard", "mlflow", "wandb".
        on_event: called with lines a user should see: back-offs, advice, what an initialisation kept.
    """
    import torch

    from medmamba.models.checkpoint import refuse_trained
    from medmamba.models.network import network_arguments
    from medmamba.networks.build import available_networks, build_network, published_networks
    from medmamba.preprocessing.store import stored_cases
    from medmamba.training import distributed
    from medmamba.training.cascade import ensure_first_stage
    from medmamba.training.config import SETTLED, TrainConfig, refuse_another_recipe
    from medmamba.training.observers import observers
    from medmamba.training.trainer import train_fold
    from medmamba.training.transfer import freeze, initialise

    if resume and init is not None:
        raise ConfigError("--resume goes on with the run's own weights, --init starts from others. Choose one.")
    folder = RunFolder(Path(run))
    made = folder.read_plan()
    name = configuration or made.default_configuration
    if name not in made.configurations:
        raise unknown_name("configuration", name, list(made.configurations))
    if network is not None and network not in (known := (*available_networks(), *published_networks())):
        raise unknown_name("network", network, known)
    chosen = made.configurations[name]
    cases = stored_cases(folder.preprocessed(name))
    training_ids, validation_ids = _fold_cases(folder, fold, sorted(cases))
    missing = [case_id for case_id in [*training_ids, *validation_ids] if case_id not in cases]
    if missing:
        raise InputError(
            f"{folder.preprocessed(name)}: {len(missing)} case(s) of the split are not preprocessed, the first is "
            f"{missing[0]}. Run `medmamba plan DATASET -o {folder.path} --configurations {name}`."
        )
    if chosen.previous_stage is not None:

        def first_stage(number: int, again: bool) -> None:
            options: dict[str, Any] = {"network": network, "use_scan": use_scan, "resume": again}
            options["config"] = None if again else config  # what stands goes on with its own recipe
            train(run, fold=number, configuration=chosen.previous_stage, on_step=on_step, on_event=on_event, **options)

        where = "auto" if config is None else config.device
        ensure_first_stage(folder, made, chosen, first_stage, device=where, say=on_event)
    arguments = network_arguments(made, chosen, network=network, use_scan=use_scan)
    target = folder.fold(name, fold)
    stored = stored_config(run, fold=fold, configuration=name) if resume else None
    config = config or stored or TrainConfig()
    if stored is not None:
        refuse_another_recipe(stored, config)
        config = config.model_copy(update={name: getattr(stored, name) for name in SETTLED})
        refuse_another_plan(target, made, arguments)
    own_device = distributed.join(config.device)
    if own_device is not None:
        config = config.model_copy(update={"device": str(own_device)})
    with ExitStack() as stack:
        stack.callback(distributed.leave)
        if not (resume or restart):
            refuse_trained(target / "checkpoints")
        torch.manual_seed(config.seed)
        built = build_network(**arguments)
        report = None if init is None else initialise(built, arguments, made, Path(init))
        freeze(built, config.freeze)
        # Nothing is written before every choice has proved possible: the folder may hold a trained fold.
        facts = {"plan_sha256": made.hash(), "configuration": name, "fold": str(fold), "network": arguments}
        first = distributed.rank() == 0
        if first:
            stack.enter_context(FolderLock(make_folder(target)))
            remove_leftovers(target)
            if restart:
                rmtree(target / "checkpoints", ignore_errors=True)
            write_text(target / "plan.json", made.to_json())
            write_json(target / "model.json", facts)
            if folder.fingerprint_path.is_file():  # what images are compared with before a mask of them is trusted
                write_bytes(target / "fingerprint.json", folder.fingerprint_path.read_bytes())
            if report is not None:
                write_json(target / "init.json", report.as_json())
            elif not resume:
                (target / "init.json").unlink(missing_ok=True)
        distributed.from_first(0.0)  # the others go on when the first has the folder to itself
        for line in [] if report is None else report.lines():
            on_event(line)
        observe = stack.enter_context(observers(folder.path, target, made, config, trackers, on_event, active=first))
        result = train_fold(
            built,
            made,
            chosen,
            [cases[case_id] for case_id in training_ids],
            [cases[case_id] for case_id in validation_ids],
            target,
            config,
            resume=resume,
            facts=facts,
            on_step=on_step,
            observe=observe,
        )
        observe("end", result)
        return result


def stored_config(run: str | Path, *, fold: int | str = 0, configuration: str | None = None) -> TrainConfig:
    """The recipe that a fold was last trained with; raises ConfigError when there is none."""
    from pydantic import ValidationError

    from medmamba.training.config import TrainConfig

    folder = RunFolder(Path(run))
    path = folder.fold(configuration or folder.read_plan().default_configuration, fold) / "train.json"
    try:
        return TrainConfig.model_validate_json(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path.parent}: nothing to resume here. Train without --resume first.") from error
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe. Begin again with --restart.") from error


def refuse_another_plan(target: Path, plan: Plan, arguments: dict[str, Any]) -> None:
    """Raises ConfigError when a fold to be resumed was trained with another plan or network, naming what differs."""
    from medmamba.models.run_folder import read_plan
    from medmamba.plans.explain import compare

    before = read_plan(target / "plan.json")
    if before.hash() != plan.hash():
        fields = [f"{field}: {old} then, {new} now" for field, old, new in compare(before, plan)][:3]
        raise ConfigError(
            f"{target}: was trained with another plan ({'; '.join(fields) or 'other reasons, same numbers'}). Restore "
            f"the old plan.json of the run, or begin again with --restart."
        )
    stored = json.loads((target / "model.json").read_text())["network"]
    changed = [key for key in {**stored, **arguments} if stored.get(key) != json.loads(json.dumps(arguments.get(key)))]
    if changed:
        raise ConfigError(
            f"{target}: was trained with another network ({', '.join(changed)} differ). Give the same --network and "
            f"--no-scan as then, or begin again with --restart."
        )


def _fold_cases(folder: RunFolder, fold: int | str, all_cases: list[str]) -> tuple[list[str], list[str]]:
    if fold == "all":
        return all_cases, []
    splits = folder.read_splits()
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        raise ConfigError(f"Fold {fold!r} does not exist. Use 0 to {len(splits) - 1}, or all.")
    return splits[fold]["train"], splits[fold]["val"]
