"""Several folds in one command: one after the other, or side by side on several devices."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any

from medmamba.errors import ConfigError, PartialError
from medmamba.models.run_folder import RunFolder
from medmamba.training.run import stored_config, train

if TYPE_CHECKING:
    from medmamba.training.config import TrainConfig
    from medmamba.training.progress import StepReport, TrainingResult


def train_folds(
    run: str | Path,
    folds: Sequence[int | str],
    choices: Mapping[str, Any],
    *,
    devices: Sequence[str] = (),
    resume: bool = False,
    init: str | Path | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_event: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[int | str, TrainingResult]:
    """Train each of ``folds``; ``choices`` are recipe fields and ``options`` those of :func:`medmamba.train`.

    With several ``devices`` as many folds run at a time, each in a process of its own on one of them; a fold that fails
    leaves the others running and is named at the end (PartialError). Without, one fold after the other. With
    ``resume`` the folds that had begun go on, and the others begin with the recipe of the first that had.
    """
    from medmamba.training.config import make_config

    names = list(dict.fromkeys(folds))
    stored = _recipes_to_go_on_with(run, names, options.get("configuration"), init) if resume else {}
    pattern = next(iter(stored.values()), None)
    recipes = {fold: make_config(choices, stored.get(fold, pattern)) for fold in names}
    all_go_on = len(stored) == len(names)  # then weights to begin with are passed on, to be refused
    starts: dict[int | str, dict[str, Any]] = {
        fold: {"resume": fold in stored, "init": None if fold in stored and not all_go_on else init} for fold in names
    }
    if len(devices) > 1 and len(names) > 1:
        return _side_by_side(run, recipes, starts, devices, on_event, options)
    results: dict[int | str, TrainingResult] = {}
    for fold, recipe in recipes.items():
        if devices:
            recipe = recipe.model_copy(update={"device": devices[0]})
        if len(names) > 1:
            on_event(f"Fold {fold} ({len(results) + 1} of {len(names)})")
        results[fold] = train(
            run, fold=fold, config=recipe, on_step=on_step, on_event=on_event, **starts[fold], **options
        )
    return results


def _recipes_to_go_on_with(
    run: str | Path, names: list[int | str], configuration: str | None, init: str | Path | None
) -> dict[int | str, TrainConfig]:
    """Recipes of the folds that have begun; when none has, ConfigError says what is missing.

    ConfigError too when the others would not begin as these did, from the weights of another model.
    """
    from medmamba.models.checkpoint import is_trained

    folder = RunFolder(Path(run))
    chosen = configuration or folder.read_plan().default_configuration
    places = {fold: folder.fold(chosen, fold) for fold in names}
    begun = [fold for fold in names if is_trained(places[fold] / "checkpoints")] or names
    new = [fold for fold in names if fold not in begun]
    initialised = [fold for fold in begun if (places[fold] / "init.json").is_file()]
    if new and initialised and init is None:
        raise ConfigError(
            f"Fold {initialised[0]} began with the weights of another model (--init), fold {new[0]} has not begun. "
            f"Give the same --init, which is for the folds that begin."
        )
    return {fold: stored_config(run, fold=fold, configuration=configuration) for fold in begun}


def _side_by_side(
    run: str | Path,
    recipes: Mapping[int | str, TrainConfig],
    starts: Mapping[int | str, dict[str, Any]],
    devices: Sequence[str],
    on_event: Callable[[str], None],
    options: dict[str, Any],
) -> dict[int | str, TrainingResult]:
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    if len(set(devices)) != len(devices) and any(device != "cpu" for device in devices):
        raise ConfigError(f"--devices {','.join(devices)}: a device is named twice. Name each one once.")
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    earlier = set(multiprocessing.active_children())
    waiting = list(recipes)
    results: dict[int | str, TrainingResult] = {}
    failed: dict[int | str, str] = {}
    running: dict[Future[TrainingResult], tuple[int | str, str, ProcessPoolExecutor]] = {}
    free = list(devices)
    try:
        while waiting or running:
            while waiting and free:
                fold, device = waiting.pop(0), free.pop(0)
                recipe = recipes[fold].model_copy(update={"device": device})
                pool = ProcessPoolExecutor(1, context, _follow_parent)  # one of its own: a death stays its own
                choices = {**options, **starts[fold], "fold": fold, "config": recipe}
                running[pool.submit(_train_one, run, choices)] = (fold, device, pool)
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
                    failed[fold] = "its process was told to end"
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
        raise PartialError(f"{len(results)} folds trained, {len(failed)} failed: {reasons} Go on with --resume.")
    return {fold: results[fold] for fold in recipes}


def _follow_parent() -> None:
    """An interrupted command ends its folds with their checkpoints saved; a killed one takes them along.

    Without it they would stay for ever, with the memory of their devices. Ctrl-C of a terminal reaches everybody, and
    the parent decides.
    """
    from medmamba.training.batches import end_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _save_and_end)
    Thread(target=end_with_parent, daemon=True).start()


def _save_and_end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # some schedulers tell everybody, and the parent tells its folds too
    raise SystemExit(128 + number)


def _train_one(run: str | Path, choices: dict[str, Any]) -> TrainingResult:
    return train(run, **choices)
