"""Several folds in one command: one after the other, or side by side on several devices."""

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType

from medmamba.compute.processes import follow_parent, starting_workers
from medmamba.errors import ConfigError, PartialError
from medmamba.models.checkpoint import has_checkpoint
from medmamba.models.run_folder import RunFolder
from medmamba.training.config import TrainConfig, make_config
from medmamba.training.fold import refuse_fold, stored_config, train
from medmamba.training.options import Fold, TrainOptions
from medmamba.training.progress import StepReport, TrainingResult
from medmamba.training.workers import automatic_workers

_Job = tuple[TrainOptions, TrainConfig]
"""How one fold is trained."""


def train_folds(
    run: str | Path,
    options: TrainOptions,
    config: TrainConfig,
    *,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_event: Callable[[str], None] = lambda line: None,
    on_start: Callable[[str], None] = lambda line: None,
) -> dict[Fold, TrainingResult]:
    """Train each of ``options.folds``.

    With several ``devices`` as many folds run at a time, each in a process of its own on one of them; a fold that fails
    leaves the others running and is named at the end (PartialError). Without, one fold after the other. With
    ``resume`` the folds that had begun are resumed, with the fields of ``config`` that were given changed, and the
    others begin with the recipe of the first that had.
    """
    if options.max_hours is not None:
        if config.max_minutes is not None:
            raise ConfigError("--max-minutes and --max-hours are two budgets; give one.")
        config = config.of(config, max_minutes=60 * options.max_hours)
    folds = list(dict.fromkeys(options.folds))
    folder = RunFolder(Path(run))
    name = options.configuration or folder.read_plan().default_configuration
    for fold in folds[1:]:  # refused before the first is trained, which may take hours
        refuse_fold(folder, name, fold, options)
    stored = _stored_recipes(run, folds, options) if options.resume else {}
    pattern = next(iter(stored.values()), None)
    given = {"device": config.device, **config.given, **({"device": options.devices[0]} if options.devices else {})}
    all_resumed = len(stored) == len(folds)  # then weights to begin with are passed on, to be refused
    jobs: dict[Fold, _Job] = {}
    for fold in folds:
        init = None if fold in stored and not all_resumed else options.init
        of_fold = options.model_copy(update={"resume": fold in stored, "init": init})
        jobs[fold] = of_fold, make_config(given, stored.get(fold, pattern))
    if len(options.devices) > 1 and len(jobs) > 1:
        return _side_by_side(run, jobs, options.devices, on_event)
    results: dict[Fold, TrainingResult] = {}
    for fold, (of_fold, recipe) in jobs.items():
        if len(jobs) > 1:
            on_event(f"Fold {fold} ({len(results) + 1} of {len(jobs)})")
        results[fold] = train(
            run, of_fold, fold=fold, config=recipe, on_step=on_step, on_event=on_event, on_start=on_start
        )
    return results


def _stored_recipes(run: str | Path, folds: list[Fold], options: TrainOptions) -> dict[Fold, TrainConfig]:
    """Recipes of the folds that have begun; when none has, ConfigError says what is missing.

    ConfigError too when the others would not begin as these did, from the weights of another model.
    """
    folder = RunFolder(Path(run))
    chosen = options.configuration or folder.read_plan().default_configuration
    places = {fold: folder.fold(chosen, fold) for fold in folds}
    begun = [fold for fold in folds if has_checkpoint(places[fold] / "checkpoints")] or folds
    new = [fold for fold in folds if fold not in begun]
    initialised = [fold for fold in begun if (places[fold] / "init.json").is_file()]
    if new and initialised and options.init is None:
        raise ConfigError(
            f"Fold {initialised[0]} began with the weights of another model (--init), fold {new[0]} has not begun. "
            f"Give the same --init, which is for the folds that begin."
        )
    return {fold: stored_config(places[fold]) for fold in begun}


def _side_by_side(
    run: str | Path, jobs: Mapping[Fold, _Job], devices: Sequence[str], on_event: Callable[[str], None]
) -> dict[Fold, TrainingResult]:
    if len(set(devices)) != len(devices) and any(device != "cpu" for device in devices):
        raise ConfigError(f"--devices {','.join(devices)}: a device is named twice. Name each one once.")
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    earlier = set(multiprocessing.active_children())
    waiting, free = list(jobs.items()), list(devices)
    results: dict[Fold, TrainingResult] = {}
    failed: dict[Fold, str] = {}
    running: dict[Future[TrainingResult], tuple[Fold, str, ProcessPoolExecutor]] = {}
    try:
        while waiting or running:
            while waiting and free:
                (fold, (options, config)), device = waiting.pop(0), free.pop(0)
                pool = ProcessPoolExecutor(1, context, _follow_parent)  # one of its own: a death stays its own
                workers = automatic_workers(len(devices)) if config.workers is None else config.workers
                config = config.model_copy(update={"device": device, "workers": workers})
                with starting_workers():
                    running[pool.submit(train, run, options, fold=fold, config=config)] = fold, device, pool
                on_event(f"Fold {fold} trains on {device}.")
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                fold, device, pool = running.pop(ended)
                free.append(device)
                pool.shutdown(wait=False)
                error = ended.exception()  # not raised: what ends a fold need not end the others
                if error is None:
                    results[fold] = ended.result()
                    on_event(f"Fold {fold} is trained: {results[fold].steps} steps in {results[fold].seconds:.0f} s.")
                elif isinstance(error, BrokenProcessPool):
                    failed[fold] = "its process was killed (most often: out of memory)"
                elif isinstance(error, SystemExit):
                    failed[fold] = "its process was terminated"
                else:
                    failed[fold] = str(error)
    finally:
        if running:  # interrupted: each saves its checkpoint and ends
            for child in set(multiprocessing.active_children()) - earlier:
                child.terminate()
            for _, _, pool in running.values():
                pool.shutdown(cancel_futures=True)
    if failed:
        reasons = "; ".join(f"fold {fold}: {reason}" for fold, reason in failed.items())
        raise PartialError(f"{len(results)} folds trained, {len(failed)} failed: {reasons}.")
    return {fold: results[fold] for fold in jobs}


def _follow_parent() -> None:
    """Initializer of a fold's process: it ends with its parent, after a checkpoint if the parent was interrupted."""
    signal.signal(signal.SIGTERM, _save_and_end)
    follow_parent()


def _save_and_end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # some schedulers signal every process, and the parent does too
    raise SystemExit(128 + number)
