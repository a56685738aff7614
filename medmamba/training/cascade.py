"""The second stage of a cascade in training: the labels that its first stage predicts for the training cases.

A case's first-stage labels come from the fold that has not trained on it, so that the second stage learns from mistakes
like those it will meet. In training they are disturbed: grown or shrunk, and components removed (nnU-Net's figures).
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medmamba.disk.atomic import write_json
from medmamba.errors import InputError
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import refuse_other_cases
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader, stored_cases
from medmamba.training import distributed

MORPHOLOGY_PROBABILITY = 0.4
MORPHOLOGY_RADIUS = (1, 8)
"""Smallest and largest radius, in voxels, of the ball that a channel is grown or shrunk with."""
REMOVAL_PROBABILITY = 0.2
PER_LABEL = 0.5
"""Probability that a channel is changed when one of the two happens to a patch."""
LARGEST_REMOVED_FRACTION = 0.15
"""Components that fill more of the patch than this are never removed."""
WAIT_SECONDS = 1.0
"""Between two checks whether the other ranks have stored their labels."""


def disturbed(channels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """One-hot channels (labels, ...) of a patch as an imperfect first stage might have given them.

    Source: nnU-Net v2, ``nnUNetTrainer.get_training_transforms`` (cascade part).
    """
    masks = channels > 0
    if rng.random() < MORPHOLOGY_PROBABILITY:
        for index in _changed_channels(masks, rng):
            before = masks[index].copy()
            masks[index] = _reshaped(before, rng)
            masks[np.arange(len(masks)) != index] &= ~(masks[index] & ~before)  # a voxel has one label
    if rng.random() < REMOVAL_PROBABILITY:
        for index in _changed_channels(masks, rng):
            _remove_one_component(masks[index], rng)
    return masks.astype(np.float32)


def _changed_channels(masks: NDArray[np.bool_], rng: np.random.Generator) -> list[int]:
    """The channels that are changed, in a drawn order."""
    return [int(index) for index in rng.permutation(len(masks)) if rng.random() < PER_LABEL]


def _reshaped(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    radius = int(rng.integers(MORPHOLOGY_RADIUS[0], MORPHOLOGY_RADIUS[1] + 1))
    kind = int(rng.integers(4))
    if not mask.any():
        return mask

    # distances instead of a ball as footprint: the same result in a fraction of the time
    def grown(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ndimage.distance_transform_edt(~part) <= radius if part.any() else part

    def shrunk(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ~grown(~part)

    first, second = ((grown, None), (shrunk, None), (shrunk, grown), (grown, shrunk))[kind]
    return first(mask) if second is None else second(first(mask))


def _remove_one_component(mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
    components, count = ndimage.label(mask)
    if not count:
        return
    sizes = np.bincount(components.ravel())[1:]
    small = np.flatnonzero(sizes <= LARGEST_REMOVED_FRACTION * mask.size) + 1
    if len(small):
        mask[components == rng.choice(small)] = False


def ensure_first_stage(
    folder: RunFolder,
    plan: Plan,
    configuration: Configuration,
    train_fold: Callable[[int, bool], None],
    *,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what is missing of the first stage and store its labels of every case beside the second stage's images.

    Args:
        train_fold: trains (and with True resumes) a fold of the first stage.

    Started by torchrun, each process stores a part of the labels and waits for the others; the first stage must be
    trained then, because ranks that found different folds missing would wait for each other for ever.

    Raises InputError when either stage is not preprocessed, or a fold is missing under torchrun.
    """
    first = configuration.previous_stage
    assert first is not None
    sources, targets = (stored_cases(folder.preprocessed(name)) for name in (first, configuration.name))
    missing = [name for name, cases in ((first, sources), (configuration.name, targets)) if not cases]
    if missing:
        raise InputError(
            f"{folder.path}: {missing[0]} is not preprocessed. Run `medmamba plan DATASET -o {folder.path} "
            f"--configurations all` again."
        )
    rank, ranks = distributed.place()
    stored: list[tuple[CaseReader, Path]] = []
    for number, split in enumerate(folder.read_splits()):
        fold = folder.fold(first, number)
        cases = [(sources[name], targets[name]) for name in split["val"]]
        stored += [(target, fold) for _, target in cases]
        if trained := (fold / "checkpoints" / "last").is_dir():
            refuse_other_cases(fold, split)
        if trained and all(_is_fresh(target, fold) for _, target in cases):
            continue
        if ranks == 1:
            say(f"First stage: {first}, fold {number} of the cross-validation.")
            train_fold(number, trained)
        elif not trained:
            raise InputError(
                f"{folder.path}: fold {number} of the first stage, {first}, is not trained. With torchrun train "
                f"all of them first: torchrun ... medmamba train {folder.path} --configuration {first} --fold {number}."
            )
        _store_labels(fold, plan, first, cases[rank::ranks], device)
    while ranks > 1 and not all(_is_fresh(target, fold) for target, fold in stored):
        time.sleep(WAIT_SECONDS)  # a rank that dies takes all others with it


def _store_labels(fold: Path, plan: Plan, first: str, cases: list[tuple[CaseReader, CaseReader]], device: str) -> None:
    from medmamba.inference.cascade import labels_on_next_grid
    from medmamba.inference.options import PredictorOptions
    from medmamba.inference.trained_model import load_model

    (ensemble,) = load_model(fold, PredictorOptions(device=device, mirror=False)).ensembles
    following = next(part for part in plan.configurations.values() if part.previous_stage == first)
    for source, target in cases:
        image, _ = source.read_whole()
        grids = [
            (case.shape, None if part.spacing_mm is None else tuple(part.spacing_mm))
            for case, part in ((source, ensemble.configuration), (target, following))
        ]
        labels = labels_on_next_grid(ensemble.planes(torch.from_numpy(image)), ensemble.heads, *grids)  # type: ignore[arg-type]
        target.write_previous(labels)
        write_json(_mark(target), {"weights_sha256": _weights(fold)})


def _is_fresh(case: CaseReader, fold: Path) -> bool:
    try:
        return bool(json.loads(_mark(case).read_text())["weights_sha256"] == _weights(fold))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _mark(case: CaseReader) -> Path:
    return case.folder / "previous.json"


def _weights(fold: Path) -> str:
    from medmamba.models.checkpoint import weights_sha256
    from medmamba.models.trained_folds import generation_of

    return weights_sha256(fold / "checkpoints" / generation_of(fold))
