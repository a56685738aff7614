"""Several folds in one command: one after the other, or side by side on several devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from medmamba.errors import ConfigError, PartialError
from medmamba.training.run import stored_config, train

if TYPE_CHECKING:
    from medmamba.training.progress import StepReport, TrainingResult


def train_folds(
    run: str | Path,
    folds: Sequence[int | str],
    choices: Mapping[str, Any],
    *,
    devices: Sequence[str] = (),
    resume: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_event: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[int | str, TrainingResult]:
    """Train each of ``folds``; ``choices`` are recipe fields and ``options`` those of :func:`medmamba.train`.

    With several ``devices`` as many folds run at a time, each in a process of its own on one of them; a fold that fails
    leaves the others running and is named at the end (PartialError). Without, one fold after the other.
    """
    from medmamba.training.config import make_config

    names = list(dict.fromkeys(folds))
    configuration = options.get("configuration")
    recipes = {
        fold: make_config(choices, stored_config(run, fold=fold, configuration=configuration) if resume else None)
        for fold in names
    }
    options = {**options, "resume": resume}
    if len(devices) > 1 and len(names) > 1:
        return _side_by_side(run, recipes, devices, on_event, options)
    results: dict[int | str, TrainingResult] = {}
    for fold, recipe in recipes.items():
        if devices:
            recipe = recipe.model_copy(update={"device": devices[0]})
        if len(names) > 1:
            on_event(f"Fold {fold} ({len(results) + 1} of {len(names)})")
        results[fold] = train(run, fold=fold, config=recipe, on_step=on_step, on_event=on_event, **options)
    return results


def _side_by_side(
    run: str | Path,
    recipes: Mapping[int | str, Any],
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
                pool = ProcessPoolExecutor(1, context, _watch)  # one of its own: a death stays its own
                running[pool.submit(_train_one, run, fold, recipe, options)] = (fold, device, pool)
                on_event(f"Fold {fold} trains on {device}.")
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                fold, device, pool = running.pop(ended)
                free.append(device)
                pool.shutdown(wait=False)
                try:
                    results[fold] = ended.result()
                    on_event(f"Fold {fold} is trained: {results[fold].steps} steps in {results[fold].seconds:.0f} s.")
                except BrokenProcessPool:
                    failed[fold] = "its process was killed (most often: out of memory)"
                except Exception as error:
                    failed[fold] = str(error)
    finally:
        for _, _, pool in running.values():
            pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        reasons = "; ".join(f"fold {fold}: {reason}" for fold, reason in failed.items())
        raise PartialError(f"{len(results)} folds trained, {len(failed)} failed: {reasons} Go on with --resume.")
    return {fold: results[fold] for fold in recipes}


def _watch() -> None:
    """A killed command takes its folds along: they would stay for ever, with the memory of their devices."""
    from medmamba.training.batches import end_with_parent

    Thread(target=end_with_parent, daemon=True).start()


def _train_one(run: str | Path, fold: int | str, recipe: Any, options: dict[str, Any]) -> TrainingResult:
    return train(run, fold=fold, config=recipe, **options)
