"""A trained model in memory: the networks that answer together, and what the run has learnt about using them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from medmamba.compute.device import choose_device
from medmamba.compute.precision import choose_precision
from medmamba.errors import ConfigError
from medmamba.inference.fold_ensemble import FoldEnsemble
from medmamba.inference.options import PredictorOptions
from medmamba.inference.patch_positions import FAST_STEP, STEP
from medmamba.inference.runner import Execution
from medmamba.inference.sliding_window import Window
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.models.run_folder import is_plan
from medmamba.models.trained_folds import is_bundle, mirrors_by_default, read_fingerprint, select_models
from medmamba.plans.fingerprint import Fingerprint


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Configurations whose probabilities are averaged.

    Attributes:
        ensembles: one per configuration; the plan is that of the first.
        execution: where and how the networks run.
        recipe: what `medmamba find-best` chose for exactly these configurations.
        fingerprint: of the training images; without it, masks and images are not compared with them.
        warnings: such as folds that are missing.
    """

    ensembles: tuple[FoldEnsemble, ...]
    execution: Execution = field(default_factory=lambda: Execution(torch.device("cpu")))
    recipe: PredictionSetup | None = None
    fingerprint: Fingerprint | None = None
    warnings: tuple[str, ...] = ()


def load_model(model: Path, options: PredictorOptions) -> TrainedModel:
    """The model in a run folder, the folder of one fold, or a bundle, on its device.

    Raises InputError when nothing is trained there, ConfigError when something does not fit the rest.
    """
    selection = select_models(model, options.configuration, options.folds, strict=options.strict)
    device = choose_device(options.device)
    execution = Execution(device, choose_precision(options.precision, device), options.scan_backend)
    recipe = selection.recipe
    measured = None if recipe is None else recipe.mirror
    mirror = options.mirror
    if mirror is None:
        mirror = measured if measured is not None and not is_bundle(model) else mirrors_by_default(model)
    mirror = mirror and not options.fast
    warnings = selection.warnings
    if measured is not None and measured != mirror:
        how = ("without", "with")
        warnings += (f"find-best measured {how[measured]} mirroring, this prediction runs {how[mirror]}",)
    window = Window(
        options.patch_size or (),
        mirror_axes=(0,) if mirror else (),
        step=FAST_STEP if options.fast else STEP,
        batch=options.tile_batch,
        skip_empty=True,
    )
    ensembles = [FoldEnsemble.load(name, folders, window, execution) for name, folders in selection.folders.items()]
    first = ensembles[0].folders[0]
    if recipe is not None and not is_plan(first / "plan.json", recipe.plan_sha256):
        raise ConfigError(f"{model}: best.json belongs to another plan. Run `medmamba find-best {model}` again.")
    return TrainedModel(tuple(ensembles), execution, recipe, read_fingerprint(first), warnings)
