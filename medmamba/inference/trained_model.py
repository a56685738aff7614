"""A trained model in memory: the folds of each configuration, whose logits are averaged, from an image to logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray

from medmamba.compute.device import choose_device, choose_precision
from medmamba.errors import ConfigError
from medmamba.geometry import Grid
from medmamba.geometry.trail import SpatialTrail
from medmamba.inference.cascade import prepare_stage
from medmamba.inference.confidence import Confidence
from medmamba.inference.memory import MemoryEstimate, estimate_memory
from medmamba.inference.options import PredictorOptions
from medmamba.inference.patch_positions import FAST_STEP, STEP
from medmamba.inference.prediction import PredictionSettings, Provenance
from medmamba.inference.runner import GPU_PASSES, Execution, NetworkRunner, sums_on
from medmamba.inference.sliding_window import Networks, Window, stream_logits
from medmamba.models import trained_folds
from medmamba.models.expectations import Expectations, read_expectations
from medmamba.models.network import mirroring_of, previous_labels
from medmamba.models.output_channels import OutputChannels
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.models.run_folder import is_plan, read_plan
from medmamba.networks.build import rebuild_network
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.schema import Plan
from medmamba.preprocessing.case import PreprocessedCase
from medmamba.version import __version__

OnTile = Callable[[int, int], None]


class FoldEnsemble:
    """Networks of one configuration of a plan, one per fold, whose logits are averaged.

    Of ``window`` an empty ``patch_size`` becomes the plan's, any ``mirror_axes`` those that the plan allows, and a
    ``batch`` of 0 as many as make :data:`~medmamba.inference.runner.GPU_PASSES` with their mirror images.
    ``folders`` are the folds', in the order of the networks; none for networks that were not loaded from a disk.
    ``previous`` is the first stage of a cascade.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        networks: Networks,
        window: Window,
        *,
        folders: Sequence[Path] = (),
        previous: "FoldEnsemble | None" = None,
    ) -> None:
        self.name, self.plan, self.networks = name, plan, networks
        self.folders, self.previous = list(folders), previous
        self.configuration = plan.configurations[name]
        self.heads = OutputChannels.of_plan(plan)
        mirroring = mirroring_of(plan, self.configuration)
        own, extra = len(plan.channel_names), previous_labels(plan, self.configuration)
        axes = tuple(mirroring.axes) if window.mirror_axes else ()
        swapped = tuple(own + self.heads.label_swap[label] - 1 for label in range(1, extra + 1))
        self.window = replace(
            window,
            patch_size=window.patch_size or tuple(self.configuration.patch_size),
            mirror_axes=axes,
            batch=window.batch or max(1, GPU_PASSES // 2 ** len(axes)),
            swap_axis=mirroring.swap_axis,
            channel_swap=self.heads.channel_swap,
            input_swap=(*range(own), *swapped) if extra else (),
            sigmoid=self.heads.sigmoid,
            skip_empty=window.skip_empty and plan.conventions == "medmamba",
            half_sums=plan.conventions == "nnunet",
        )
        given, needed = len(self.window.patch_size), len(self.configuration.patch_size)
        if given != needed:
            raise ConfigError(f"--patch-size needs {needed} numbers for {name}, not {given}.")

    @classmethod
    def load(cls, name: str, folders: Sequence[Path], window: Window, execution: Execution) -> Self:
        """The folds in these folders, and all of a cascade's first stage. Raises ConfigError where one is damaged."""
        plan = read_plan(folders[0] / "plan.json")
        previous = None
        if first := plan.configurations[name].previous_stage:
            home = folders[0].parent.parent  # models/ of a run or of a bundle
            trained = sorted(path for path in home.glob(f"{first}/fold_*") if trained_folds.has_weights(path))
            if not trained:
                raise ConfigError(
                    f"{folders[0]}: the second stage of a cascade whose first, {first}, is not in {home}. Keep the "
                    "folders of both stages together."
                )
            previous = cls.load(first, trained, replace(window, patch_size=()), execution)
        networks = [_load(folder, execution) for folder in folders]
        return cls(name, plan, networks, window, folders=folders, previous=previous)

    @property
    def runners(self) -> list[NetworkRunner]:
        """The networks that were loaded from a disk."""
        return [network for network in self.networks if isinstance(network, NetworkRunner)]

    def weights_sha256(self) -> Mapping[str, str]:
        """SHA-256 of the weights of each fold, those of a first stage included."""
        found = {folder.name: trained_folds.hash_of_weights(folder) for folder in self.folders}
        if self.previous is not None:
            found |= {f"{self.previous.name}/{name}": value for name, value in self.previous.weights_sha256().items()}
        return found

    def prepare(self, name: str, array: NDArray[Any], grid: Grid) -> PreprocessedCase:
        """An image (C, i, j, k) on this configuration's grid, behind it what the first stage of a cascade found."""
        return prepare_stage(name, array, grid, self.plan, self.configuration, self.previous)

    def planes(
        self,
        image: torch.Tensor,
        *,
        scratch: Path | None = None,
        confidence: Confidence | None = None,
        on_tile: OnTile = lambda done, total: None,
    ) -> Iterator[torch.Tensor]:
        """The planes of :func:`~medmamba.inference.sliding_window.stream_logits`, seen by ``confidence`` as well."""
        for runner in self.runners:
            runner.begin_case()
        devices = {runner.execution.device for runner in self.runners}
        device = torch.device("cpu")
        if len(devices) == 1 and len(self.runners) == len(self.networks):
            summed = self.plan.out_channels * (len(self.networks) if self.window.half_sums else 1)
            device = sums_on(devices.pop(), image.shape, summed, self.window.box)
        window = replace(self.window, scratch=scratch if device.type == "cpu" else None)
        planes = stream_logits(self.networks, image, window, on_tile=on_tile, confidence=confidence, device=device)
        return planes if confidence is None else map(confidence.see_plane, planes)

    def estimate(self, trail: SpatialTrail, budget: int) -> MemoryEstimate:
        """What predicting a case with this trail will need; ``budget`` in bytes decides what goes to disk."""
        return estimate_memory(
            trail,
            channels=len(self.plan.channel_names) + previous_labels(self.plan, self.configuration),
            classes=self.plan.out_channels,
            box=self.window.box,
            batch=self.window.batch,
            passes=len(self.networks) * 2 ** len(self.window.mirror_axes),
            number_bytes=2 * len(self.networks) if self.window.half_sums else 4,
            budget=budget,
        )


def _load(folder: Path, execution: Execution) -> NetworkRunner:
    facts = trained_folds.read_model_facts(folder)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
        network = rebuild_network(facts.network)
    trained_folds.load_weights(folder, network)
    if not is_plan(folder / "plan.json", facts.plan_sha256):
        raise ConfigError(f"{folder}: its plan.json is not the plan it was trained with. Restore the file.")
    return NetworkRunner(network, execution)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Configurations whose probabilities are averaged; the plan is that of the first.

    ``others`` are models with plans of their own whose probabilities are averaged with its own (joint.py). ``recipe``
    is what `medmamba find-best` chose for exactly these configurations, ``expectations`` what it learned about their
    masks, or None and in ``not_learned`` the reason. Without the fingerprint of the
    training images, masks and images are not compared with them.
    """

    ensembles: tuple[FoldEnsemble, ...]
    execution: Execution = field(default_factory=lambda: Execution(torch.device("cpu")))
    recipe: PredictionSetup | None = None
    fingerprint: Fingerprint | None = None
    warnings: tuple[str, ...] = ()
    others: tuple["TrainedModel", ...] = ()
    expectations: Expectations | None = None
    not_learned: str = "not learned: run `medmamba find-best`"

    @property
    def members(self) -> tuple["TrainedModel", ...]:
        """This model and the others."""
        return (self, *self.others)

    def provenance(self, *, fast: bool) -> Provenance:
        """The provenance of its masks, with the hashes of the weights as they are on disk now."""
        ensembles, plan = self.ensembles, self.ensembles[0].plan
        window = ensembles[0].window
        backends = dict.fromkeys(runner.scan_backend for each in ensembles for runner in each.runners)
        settings = PredictionSettings(
            configuration=[each.name for each in ensembles],
            folds={each.name: [folder.name for folder in each.folders] for each in ensembles},
            mirror=any(each.window.mirror_axes for each in ensembles),
            fast=fast,
            step=window.step,
            patch_size={each.name: list(each.window.patch_size) for each in ensembles},
            tile_batch=window.batch,
            precision=self.execution.precision,
            scan_backend=", ".join(name for name in backends if name != "none") or "none",
            threads=torch.get_num_threads(),
            reading={**plan.reading.model_dump(), "channel_files": plan.channel_files},
        )
        return Provenance(
            medmamba=__version__,
            torch=torch.__version__,
            dataset=plan.dataset_name,
            plan_sha256=plan.hash(),
            weights_sha256={each.name: each.weights_sha256() for each in ensembles},
            settings=settings,
            recipe_sha256=None if self.recipe is None else self.recipe.hash(),
            device=str(self.execution.device),
            labels=dict(plan.labels),
            regions=plan.regions,
            region_order=plan.region_order,
            warnings=self.warnings,
            others=[other.provenance(fast=fast) for other in self.others],
            ignore=plan.ignore_label,
            expectations_sha256=None if self.expectations is None else self.expectations.hash(),
        )


def load_model(model: Path, options: PredictorOptions) -> TrainedModel:
    """The model in a run folder, a fold's folder or a bundle, on its device. Raises InputError where none is."""
    selection = trained_folds.select_models(model, options.configuration, options.folds, strict=options.strict)
    device = choose_device(options.device)
    single = options.precision == "auto" and device.type == "cpu"
    precision = "fp32" if single else choose_precision(options.precision, device)
    execution = Execution(device, precision, options.scan_backend)
    recipe = selection.recipe
    measured = None if recipe is None else recipe.mirror
    mirror = options.mirror
    if mirror is None and not trained_folds.is_bundle(model):
        mirror = measured
    if mirror is None:
        mirror = trained_folds.mirrors_by_default(model)
    mirror = mirror and not options.fast
    warnings = selection.warnings
    if measured is not None and measured != mirror:
        how = ("without", "with")
        warnings += (f"find-best ran {how[measured]} mirroring, this prediction runs {how[mirror]} it",)
    window = Window(
        options.patch_size or (),
        mirror_axes=(0,) if mirror else (),
        step=FAST_STEP if options.fast else STEP,
        batch=options.tile_batch or (0 if device.type == "cuda" else 1),
        skip_empty=True,
    )
    ensembles = [FoldEnsemble.load(name, folders, window, execution) for name, folders in selection.folders.items()]
    first = ensembles[0].folders[0]
    if recipe is not None and not is_plan(first / "plan.json", recipe.plan_sha256):
        raise ConfigError(f"{model}: best.json belongs to another plan. Run `medmamba find-best {model}` again.")
    known, lacking = _expectations(model, ensembles, recipe, options)
    return TrainedModel(
        tuple(ensembles),
        execution,
        recipe,
        trained_folds.read_fingerprint(first),
        warnings,
        expectations=known,
        not_learned=lacking,
    )


def _expectations(
    model: Path, ensembles: Sequence[FoldEnsemble], recipe: PredictionSetup | None, options: PredictorOptions
) -> tuple[Expectations | None, str]:
    """What find-best learned about masks of exactly this model and these settings, or why nothing holds for them."""
    if trained_folds.is_fold(model):
        return None, "not learned: a fold alone has no cross-validation; predict with its run"
    home = model / "models" if trained_folds.is_bundle(model) else model
    found = read_expectations(home, ensembles[0].plan.hash())
    if found is None:
        return None, "not learned: run `medmamba find-best`"
    if recipe is None:
        return None, "not learned for these configurations: find-best chose others"
    if options.patch_size is not None:
        return None, "not learned for another patch size"
    weights = {each.name: each.weights_sha256() for each in ensembles}
    mirror = any(each.window.mirror_axes for each in ensembles)
    why = found.refusal(recipe, weights, mirror=mirror, step=ensembles[0].window.step)
    return (None, f"not learned for this model: {why}. Run `medmamba find-best` again") if why else (found, "")
