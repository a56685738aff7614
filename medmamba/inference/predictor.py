"""The predictor: loads a trained model once and turns images into masks on their own grid."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.compute.free_memory import free_memory
from medmamba.errors import ConfigError, InputError, MedmambaError, ResourceError, size_text
from medmamba.geometry.trail import SpatialTrail
from medmamba.images import MedicalImage, ReadOptions, label_counts, read_channels
from medmamba.images.in_memory import as_image
from medmamba.inference.confidence import Confidence
from medmamba.inference.cpu import give_back_memory
from medmamba.inference.evidence import Measured, NetworkEvidence, measured_image
from medmamba.inference.expected import ExpectedQuality, expectations_of_mask, unjudged
from medmamba.inference.finding import Finding, status_of
from medmamba.inference.joint import Models, Streams, load_models, mean_on_native_grid
from medmamba.inference.memory import MemoryEstimate
from medmamba.inference.options import BUDGET_GIB, PredictorOptions
from medmamba.inference.prediction import FailedPrediction, Prediction, Provenance
from medmamba.inference.quality import check_confidence, check_image, check_mask, check_sides
from medmamba.inference.restore import on_native_grid
from medmamba.inference.trained_model import FoldEnsemble, OnTile, TrainedModel
from medmamba.inference.uncertainty import VoxelUncertainty
from medmamba.models.cleaning import clean
from medmamba.models.output_channels import OutputChannels
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.models.trained_folds import is_bundle, is_fold
from medmamba.plans.schema import Plan
from medmamba.preprocessing.case import PreprocessedCase, bounding_box, to_plan_axes, trail_of_shape
from medmamba.preprocessing.labels import decode, label_names

OnMessage = Callable[[str], None]
FREE_FRACTION = 0.7
"""Of the memory that is free, at most this fraction is planned with."""

MUCH_WORK = 8
"""Voxels on the plan's grid per voxel of an image, from which on a warning is given before resampling."""


class Predictor:
    """A trained model, loaded once; may be called from several threads, which use the network one at a time.

    It changes nothing outside itself: no settings of torch or of the process, no folder but ``scratch``. Leaving a
    ``with`` block, or :meth:`close`, frees its memory.

    Args:
        model: a run folder, the folder of one fold, or a bundle of `medmamba export`; a list of them, whose
            probabilities are averaged; or networks in memory, a
            :class:`~medmamba.inference.trained_model.TrainedModel`. Of a run, all trained folds are averaged.
        changes: single fields of :class:`~medmamba.inference.options.PredictorOptions` by name, as ``mirror=False``.
    """

    def __init__(self, model: Models | TrainedModel, options: PredictorOptions | None = None, **changes: Any) -> None:
        self.options = PredictorOptions.of(options, **changes)
        self.model = model if isinstance(model, TrainedModel) else load_models(model, self.options)
        self.on_tile: OnTile = lambda done, total: None
        self._closed = False
        self._reported: set[str] = set()
        # now: the hashes are of the weights that were loaded, not of files changed later
        self._provenance = self.model.provenance(fast=self.options.fast)

    @classmethod
    def from_run(cls, run: str | Path, options: PredictorOptions | None = None, **changes: Any) -> Self:
        """The model of a run folder."""
        if not (Path(run) / "plan.json").is_file() or is_fold(Path(run)):
            raise InputError(f"{run}: not a run folder. Give the folder that `medmamba plan` and `train` wrote.")
        return cls(run, options, **changes)

    @classmethod
    def from_folder(cls, fold: str | Path, options: PredictorOptions | None = None, **changes: Any) -> Self:
        """The model of one trained fold, wherever its folder was moved to."""
        if not is_fold(Path(fold)):
            raise InputError(f"{fold}: not a trained fold. Give a folder that holds model.json and checkpoints/.")
        return cls(fold, options, **changes)

    @classmethod
    def from_bundle(cls, bundle: str | Path, options: PredictorOptions | None = None, **changes: Any) -> Self:
        """The model of a bundle that `medmamba export` wrote; mirrors, unless asked otherwise, as the bundle does."""
        if not is_bundle(Path(bundle)):
            raise InputError(f"{bundle}: not a bundle of `medmamba export`. Give the folder that holds configs/.")
        return cls(bundle, options, **changes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the networks; the predictor cannot be used any more."""
        for ensemble in self._ensembles:
            ensemble.networks = []
        self._closed = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def device(self) -> torch.device:
        """Where the networks were loaded to."""
        return self.model.execution.device

    @property
    def _ensembles(self) -> list[FoldEnsemble]:
        """All configurations, those of further models too."""
        return [ensemble for model in self.model.members for ensemble in model.ensembles]

    @property
    def plan(self) -> Plan:
        """The plan that the model was trained with; of several models, that of the first."""
        return self.model.ensembles[0].plan

    @property
    def reading(self) -> ReadOptions:
        """How images are read: as for training."""
        return ReadOptions.of(self.plan.reading)

    @property
    def heads(self) -> OutputChannels:
        """What the channels of its logits mean."""
        return self.model.ensembles[0].heads

    def provenance(self) -> Provenance:
        """What made the masks: version, plan, weights, settings, device; enough to make them again."""
        return self._provenance

    def estimate(self, shape: Sequence[int], spacing_mm: Sequence[float] | None = None) -> MemoryEstimate:
        """The memory that predicting an image of this shape (i, j, k) and spacing (default: the model's) would need."""
        found = []
        for ensemble in self._ensembles:
            trail = trail_of_shape(shape, spacing_mm, ensemble.plan, ensemble.configuration)
            found.append(astuple(ensemble.estimate(trail, self._budget())))
        whole = MemoryEstimate(*map(sum, zip(*found, strict=True)))  # configurations are averaged plane by plane
        return replace(whole, others=whole.others + self._probability_bytes(math.prod(shape)))

    def _probability_bytes(self, voxels: int) -> int:
        """Of several models: their mean on the image's grid, and the probabilities of one, cropped and whole."""
        return 3 * 4 * len(self.heads.names) * voxels if self.model.others else 0

    def predict_many(
        self, images: Iterable[Any], *, on_error: Literal["raise", "record"] = "raise", probabilities: bool = False
    ) -> Iterator[Prediction | FailedPrediction]:
        """One result per image, lazily; with ``on_error="record"`` a FailedPrediction if it fails."""
        if on_error not in ("raise", "record"):
            raise InputError(f"on_error={on_error!r} is neither 'raise' nor 'record'.")
        for image in images:
            try:
                yield self.predict(image, probabilities=probabilities)
            except (MedmambaError, FloatingPointError, MemoryError) as error:
                if on_error == "raise":
                    raise
                first = image[0] if isinstance(image, list | tuple) and len(image) else image
                name = Path(first).name if isinstance(first, str | Path) else type(image).__name__
                yield FailedPrediction(name, str(error) or "out of memory", error)

    def predict(
        self,
        image: Any,
        on_tile: OnTile | None = None,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        planes_on_disk: bool = False,
        on_message: OnMessage = lambda line: None,
    ) -> Prediction:
        """The mask of an image.

        Args:
            image: a path (file, or folder of a DICOM series), a list of paths (one per channel), a MedicalImage, an
                array (C, i, j, k) or (i, j, k), an (array, affine) pair, a nibabel or a SimpleITK image.
            on_tile: called with the number of patches that are done, and of all.
            probabilities, uncertainty: keep them in the prediction too.
            planes_on_disk: keep as little as possible in memory, whatever is free.
            on_message: called with the memory that is needed before the start, and when the device runs out of it.

        Raises:
            InputError: the image is unreadable, has other channels than the model, or shows nothing.
            ResourceError: it needs more than ``memory_limit_gib``; the message says how much.
        """
        if self._closed:
            raise ConfigError("This predictor was closed. Make a new one.")
        started, seconds = time.perf_counter(), dict[str, float]()

        def end_of(stage: str) -> None:
            seconds[stage] = time.perf_counter() - started - sum(seconds.values())

        many = isinstance(image, list) or (isinstance(image, tuple) and all(isinstance(p, str | Path) for p in image))
        image = read_channels(image, self.reading) if many else as_image(image, self.reading)
        name = image.path.name if image.path is not None else "image"
        image = image.with_channels(len(self.plan.channel_names), name)
        findings = self._check(name, image)
        self._check_work(name, image, on_message)
        end_of("read")
        cases = [ensemble.prepare(name, image.array, image.grid) for ensemble in self._ensembles]
        end_of("preprocess")
        judged = self.options.confidence and self.model.expectations is not None
        seen = NetworkEvidence(self.heads) if judged else None
        looks: Measured = {}
        if judged:
            own = cases[0].image[: len(self.plan.channel_names)]
            looks = measured_image(own, cases[0].trail.grid.spacing_mm)
        confidence = Confidence(sigmoid=self.heads.sigmoid, evidence=seen) if self.options.confidence else None
        streams = self._streams(cases, confidence, on_tile or self.on_tile, on_message, planes_on_disk)
        rules = self.model.expectations
        voxels = VoxelUncertainty(self.heads, () if rules is None else rules.voxel_errors) if uncertainty else None
        indices, kept = self._restored(streams, probabilities, voxels)
        end_of("network")
        give_back_memory()
        result = self._finish(name, image, indices, findings, confidence, looks)
        end_of("finish")
        percent = None if voxels is None else voxels.percent
        return replace(result, probabilities=kept, uncertainty=percent, seconds=seconds)

    def _restored(
        self, streams: Streams, probabilities: bool, uncertainty: VoxelUncertainty | None
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32] | None]:
        """Label indices on the image's own grid, and the probabilities if asked for."""
        if self.model.others:
            left = iter(streams)
            members = [(model, [next(left) for _ in model.ensembles]) for model in self.model.members]
            indices, mean = mean_on_native_grid(members, self.heads)
            if uncertainty is not None:
                uncertainty.percent = uncertainty.of_volume(mean)
            return indices, mean if probabilities else None
        recipe = self._recipe
        thresholds = None if recipe is None else recipe.thresholds_of(self.heads.names)
        temperature = 1.0 if recipe is None else recipe.temperature
        return on_native_grid(
            streams, self.heads, thresholds, temperature, probabilities=probabilities, uncertainty=uncertainty
        )

    @property
    def _recipe(self) -> PredictionSetup | None:
        """What find-best chose for this model alone; nothing for several."""
        return None if self.model.others else self.model.recipe

    def _check(self, name: str, image: MedicalImage) -> list[Finding]:
        """What is unusual about an image; raises InputError for one that cannot be predicted."""
        channels = self.plan.channel_names
        if image.channels != len(channels):
            raise InputError(
                f"{name}: has {image.channels} channel(s), the model was trained with {len(channels)} "
                f"({', '.join(channels)}). Give all channels in this order."
            )
        known = [check_image(image, model.fingerprint) for model in self.model.members]
        findings = list(dict.fromkeys(finding for found in known for finding in found))
        if status_of(findings) == "reject":
            raise InputError(f"{name}: rejected: {_reasons(findings, 'reject')}. Check the image.")
        return findings

    def _check_work(self, name: str, image: MedicalImage, on_message: OnMessage) -> None:
        """Before resampling: warn if an image gets many times its voxels, refuse one that does not fit into memory."""
        trail = SpatialTrail(image.grid).then(to_plan_axes(image.grid, self.plan))
        start, stop = bounding_box(trail.apply(image.array))
        shape = [end - begin for begin, end in zip(start, stop, strict=True)]
        ensemble = self.model.ensembles[0]
        planned = trail_of_shape(shape, trail.grid.spacing_mm, self.plan, ensemble.configuration).grid
        times, estimate = planned.voxels / math.prod(shape), self.estimate(shape, trail.grid.spacing_mm)
        free = free_memory()
        if free is not None and estimate.peak > free:
            raise InputError(
                f"{name}: {times:.0f} times its voxels on the grid of the model, {estimate.sentence()}, and "
                f"{size_text(free)} of memory are free. Check the spacing of the image, or crop it."
            )
        if times >= MUCH_WORK:
            patches = ensemble.window.patches(planned.shape)
            on_message(
                f"Warning: {name}: spacing far from that of training: {times:.0f} times its voxels, "
                f"{estimate.sentence()}; {patches} patches to predict."
            )

    def _streams(
        self,
        cases: Sequence[PreprocessedCase],
        confidence: Confidence | None,
        on_tile: OnTile,
        on_message: OnMessage,
        planes_on_disk: bool,
    ) -> list[tuple[Iterator[torch.Tensor], SpatialTrail]]:
        """The planes of logits of each configuration, with the trail of its grid; confidence is that of the first."""
        streams = []
        ensembles = self._ensembles
        budget = 0 if planes_on_disk else self._budget()
        limit, scratch = self.options.memory_limit_gib, self.options.scratch or Path(tempfile.gettempdir())
        for number, (ensemble, case) in enumerate(zip(ensembles, cases, strict=True)):
            for runner in ensemble.runners:
                runner.on_warning = on_message
            estimate = ensemble.estimate(case.trail, budget)
            estimate = replace(
                estimate, others=estimate.others + self._probability_bytes(math.prod(case.trail.native.shape))
            )
            if limit is not None and estimate.peak > limit * 2**30:
                needed = f"{case.case_id}: {estimate.sentence()}, the limit is {size_text(limit * 2**30)}"
                raise ResourceError(f"{needed}. Allow more memory, or crop the image.")
            if (line := f"{ensemble.name} {estimate.sentence()}") not in self._reported:  # once per image size
                self._reported.add(line)
                on_message(f"{case.case_id}: {line}")
            planes = ensemble.planes(
                torch.from_numpy(case.image),
                scratch=scratch if estimate.spills else None,
                confidence=confidence if number == 0 else None,
                on_tile=on_tile if len(ensembles) == 1 else _part_of(on_tile, number, len(ensembles)),
            )
            streams.append((planes, case.trail))
        return streams

    def _finish(
        self,
        name: str,
        image: MedicalImage,
        indices: NDArray[np.unsignedinteger],
        findings: list[Finding],
        confidence: Confidence | None,
        looks: Measured,
    ) -> Prediction:
        """The prediction of label indices: cleaned, measured, compared with the training cases."""
        recipe = self._recipe
        names, volume_mm3 = label_names(self.plan), image.grid.voxel_volume_mm3
        if recipe is not None:
            indices = clean(indices, recipe.cleaning, names, volume_mm3)
        counts = label_counts(indices)
        voxels = {label: counts.get(index, 0) for index, label in enumerate(names, start=1)}
        volumes_ml = {name: None if volume_mm3 is None else n * volume_mm3 / 1000 for name, n in voxels.items()}
        entropy = None if confidence is None else confidence.entropy
        agreement = None if confidence is None else confidence.agreement
        findings += check_confidence(entropy, agreement, None if recipe is None else recipe.limits)
        for known in (model.fingerprint for model in self.model.members):
            if known is not None:
                findings += check_mask(image, indices, volumes_ml, voxels, known)
                findings += check_sides(indices, names, image.grid, known)
        expected, not_learned, verdicts = self._expected(image, indices, confidence, looks)
        findings += verdicts
        if self.options.strict and status_of(findings) != "ok":
            raise InputError(f"{name}: {_reasons(findings, 'review')}. Look at the image, or leave out --strict.")
        return Prediction(
            labels=decode(indices, self.plan),
            grid=image.grid,
            volumes_ml=volumes_ml,
            voxels=voxels,
            findings=tuple(dict.fromkeys(findings)),
            entropy=entropy,
            agreement=agreement,
            expected=expected,
            not_learned=not_learned,
            like=image,
            provenance=self._provenance,
        )

    def _expected(
        self,
        image: MedicalImage,
        indices: NDArray[np.unsignedinteger],
        confidence: Confidence | None,
        looks: Measured,
    ) -> tuple[dict[str, ExpectedQuality], dict[str, str], list[Finding]]:
        """What to expect of each structure of a finished mask, of which nothing and why, and what follows from it."""
        rules, heads = self.model.expectations, self.heads
        evidence = None if confidence is None else confidence.evidence
        if rules is None or evidence is None:
            reason = self.model.not_learned or "not measured: --no-confidence"
            return {}, {"": reason}, unjudged("", reason, self.options.accept_dice)
        return expectations_of_mask(
            rules,
            heads,
            indices,
            image.grid.spacing_mm,
            evidence.of_structures(),
            looks,
            accept_dice=self.options.accept_dice,
            risk=self.options.risk,
        )

    def _budget(self) -> int:
        """Memory budget in bytes of each configuration: as requested, else the default or most of the free memory."""
        known = [gib for gib in (self.options.memory_gib, self.options.memory_limit_gib) if gib is not None]
        if not known:
            free = free_memory()
            known = [BUDGET_GIB, *([] if free is None else [FREE_FRACTION * free / 2**30])]
        return int(min(known) * 2**30) // len(self._ensembles)


def _part_of(on_tile: OnTile, number: int, count: int) -> OnTile:
    """Progress of one of several configurations, each counting as an equal part of 1000."""

    def scaled(done: int, total: int) -> None:
        on_tile(round(1000 * (number + done / total) / count), 1000)

    return scaled


def _reasons(findings: Sequence[Finding], level: str) -> str:
    return "; ".join(finding.text for finding in findings if finding.level in (level, "reject"))
