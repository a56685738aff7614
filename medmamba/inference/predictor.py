"""The predictor: loads a trained model once and turns images into masks on their own grid."""

from __future__ import annotations

import copy
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.compute.device import choose_device
from medmamba.compute.precision import choose_precision
from medmamba.errors import ConfigError, InputError, MedmambaError, ResourceError
from medmamba.images import label_counts, read_channels
from medmamba.images.image import smallest_type
from medmamba.images.in_memory import as_image
from medmamba.inference.cleaning import clean
from medmamba.inference.confidence import Confidence
from medmamba.inference.cpu import give_back_memory
from medmamba.inference.fold_ensemble import Member
from medmamba.inference.memory import MemoryEstimate, budget_of, sum_of
from medmamba.inference.options import PredictorOptions
from medmamba.inference.patch_positions import FAST_STEP, STEP
from medmamba.inference.prediction import FailedPrediction, Prediction, shown_case
from medmamba.inference.quality import Finding, check_image, check_result, check_sides, status_of
from medmamba.inference.restore import label_blocks, mean_chances, undo_storage
from medmamba.inference.sliding_window import Window
from medmamba.models.run_folder import is_plan
from medmamba.models.trained_folds import is_bundle, is_fold, mirrors_by_default, read_fingerprint, select_models
from medmamba.plans.labels import label_names, label_values
from medmamba.preprocessing.case import PreprocessedCase


class Predictor:
    """A trained model, loaded once; may be called from several threads, which take turns at the network.

    It changes nothing outside itself: no settings of torch or of the process, no folder but ``scratch``. Leaving a
    ``with`` block, or :meth:`close`, frees its memory.

    Args:
        model: a run folder, the folder of one fold, or a bundle of `medmamba export`. Of a run, all trained folds of
            the configuration are averaged.
        options: how it predicts; see :class:`~medmamba.inference.options.PredictorOptions`.
        changes: single fields of the options by name, as ``mirror=False``.
    """

    def __init__(self, model: str | Path, options: PredictorOptions | None = None, **changes: Any) -> None:
        self.options = options = PredictorOptions.of(options, **changes)
        selection = select_models(Path(model), options.configuration, options.folds, strict=options.strict)
        self.device = choose_device(options.device)
        precision = choose_precision(options.precision, self.device)
        self.scratch = Path(options.scratch or tempfile.gettempdir())
        self.memory_gib = options.memory_gib
        self.on_tile: Callable[[int, int], None] = lambda done, total: None
        self.recipe, self.remarks = selection.recipe, selection.remarks
        self._lock = threading.Lock()
        self._closed = False
        mirror = mirrors_by_default(Path(model)) if options.mirror is None else options.mirror
        window = Window(
            options.patch_size or (),
            mirror_axes=(0,) if mirror and not options.fast else (),
            step=FAST_STEP if options.fast else STEP,
            batch=options.tile_batch,
            skip_empty=True,
        )
        self.members = [
            Member(name, folders, self.device, window, self._lock, precision)
            for name, folders in selection.folders.items()
        ]
        self.plan = self.members[0].plan
        self.heads = self.members[0].heads
        plan_file = self.members[0].folders[0] / "plan.json"
        if self.recipe is not None and not is_plan(plan_file, self.recipe.plan_sha256):
            raise ConfigError(f"{model}: best.json belongs to another plan. Run `medmamba find-best {model}` again.")
        self.fingerprint = read_fingerprint(self.members[0].folders[0])
        self.settings: dict[str, Any] = {
            "configuration": [member.name for member in self.members],
            "folds": {member.name: [folder.name for folder in member.folders] for member in self.members},
            "mirror": bool(window.mirror_axes),
            "fast": options.fast,
            "step": window.step,
            "patch_size": {member.name: list(member.window.patch_size) for member in self.members},
            "tile_batch": options.tile_batch,
            "precision": precision,
            "threads": torch.get_num_threads(),
        }
        self._made = self._provenance()  # hashes of the weights that were loaded, not of files changed later

    @classmethod
    def from_run(cls, run: str | Path, options: PredictorOptions | None = None, **changes: Any) -> Self:
        """The model of a run folder; ``options`` and ``changes`` as of the class."""
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
        """The model of a bundle that `medmamba export` wrote; mirrors, if not told, as the bundle does."""
        if not is_bundle(Path(bundle)):
            raise InputError(f"{bundle}: not a bundle of `medmamba export`. Give the folder that holds configs/.")
        return cls(bundle, options, **changes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the networks; the predictor cannot be used any more."""
        with self._lock:
            for member in self.members:
                member.runners.clear()
        self._closed = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def estimate(self, shape: Sequence[int], spacing_mm: Sequence[float] | None = None) -> MemoryEstimate:
        """What predicting an image of this shape (i, j, k) and spacing would need, told without predicting it.

        Args:
            spacing_mm: of the image; the model's own if left out.
        """
        budget = self._budget()
        return sum_of([member.estimate_for(shape, spacing_mm, budget) for member in self.members])

    def predict_many(
        self,
        images: Iterable[Any],
        *,
        on_error: Literal["raise", "record"] = "raise",
        probabilities: bool = False,
    ) -> Iterator[Prediction | FailedPrediction]:
        """One result per image, in order, each computed when it is asked for.

        With ``on_error="record"`` a case that fails gives a :class:`FailedPrediction` and the next one follows.
        """
        if on_error not in ("raise", "record"):
            raise InputError(f"on_error={on_error!r} is neither 'raise' nor 'record'.")
        for image in images:
            try:
                yield self.predict(image, probabilities=probabilities)
            except (MedmambaError, FloatingPointError, MemoryError) as error:
                if on_error == "raise":
                    raise
                yield FailedPrediction(shown_case(image), str(error) or "out of memory", error)

    def predict(
        self,
        image: Any,
        on_tile: Callable[[int, int], None] | None = None,
        *,
        probabilities: bool = False,
        on_message: Callable[[str], None] = lambda line: None,
    ) -> Prediction:
        """The mask of an image.

        Args:
            image: a path (file, or folder of a DICOM series), a list of paths (one per channel), a MedicalImage, an
                array (C, i, j, k) or (i, j, k), an (array, affine) pair, a nibabel or a SimpleITK image.
            probabilities: also give the probability of every class in every voxel.
            on_message: told what is needed before the start, and when the device runs out of memory.

        Raises:
            InputError: the image is unreadable, has other channels than the model, or shows nothing.
            ResourceError: it needs more than ``memory_limit_gib``; the message says how much.
        """
        if self._closed:
            raise ConfigError("This predictor was closed. Make a new one.")
        started = time.perf_counter()
        on_tile = on_tile or self.on_tile
        many = isinstance(image, list) or (isinstance(image, tuple) and all(isinstance(p, str | Path) for p in image))
        image = read_channels(image) if many else as_image(image)
        name = image.path.name if image.path is not None else "image"
        if image.channels != len(self.plan.channel_names):
            raise InputError(
                f"{name}: has {image.channels} channel(s), the model was trained with {len(self.plan.channel_names)} "
                f"({', '.join(self.plan.channel_names)}). Give all channels in this order."
            )
        findings = check_image(image, self.fingerprint)
        if status_of(findings) == "reject":
            raise InputError(f"{name}: rejected: {_reasons(findings, 'reject')}. Check the image.")
        read = time.perf_counter()
        cases = [member.prepare(name, image.array, image.grid) for member in self.members]
        prepared = time.perf_counter()
        judge = Confidence(sigmoid=self.heads.sigmoid) if self.options.confidence else None
        indices, chances = self._indices(cases, judge, on_tile, on_message, probabilities)
        predicted = time.perf_counter()
        give_back_memory()
        names = label_names(self.plan)
        if self.recipe is not None:
            index = {label: number for number, label in enumerate(names, start=1)}
            indices = clean(indices, self.recipe.cleaning, index, image.grid.voxel_volume_mm3)
        counts = label_counts(indices)
        volume = image.grid.voxel_volume_mm3
        voxels = {label: counts.get(index, 0) for index, label in enumerate(names, start=1)}
        volumes = {label: None if volume is None else count * volume / 1000 for label, count in voxels.items()}
        entropy, agreement = (None, None) if judge is None else (judge.entropy, judge.agreement)
        findings += check_result(
            image,
            indices,
            volumes,
            voxels,
            self.fingerprint,
            entropy=entropy,
            agreement=agreement,
            limits=None if self.recipe is None else self.recipe.limits,
        )
        if self.fingerprint is not None:
            findings += check_sides(indices, names, image.grid, self.fingerprint)
        if self.options.strict and status_of(findings) != "ok":
            raise InputError(f"{name}: {_reasons(findings, 'review')}. Look at the image, or leave out --strict.")
        done = time.perf_counter()
        seconds = {
            "read": read - started,
            "preprocess": prepared - read,
            "network": predicted - prepared,
            "finish": done - predicted,
        }
        return Prediction(
            _written(indices, label_values(self.plan)),
            image.grid,
            volumes,
            voxels,
            tuple(findings),
            entropy,
            agreement,
            seconds,
            chances,
            image,
            self.provenance(),
        )

    def provenance(self) -> dict[str, Any]:
        """What made the masks: version, plan, weights, settings, device; enough to make them again."""
        return copy.deepcopy(self._made)

    def _provenance(self) -> dict[str, Any]:
        from medmamba.version import __version__

        return {
            "medmamba": __version__,
            "torch": torch.__version__,
            "dataset": self.plan.dataset_name,
            "plan_sha256": self.plan.hash(),
            "weights_sha256": {member.name: member.weights() for member in self.members},
            "settings": self.settings,
            "recipe_sha256": None if self.recipe is None else self.recipe.hash(),
            "device": str(self.device),
            "labels": dict(self.plan.labels),
            "regions": self.plan.regions,
            "remarks": list(self.remarks),
        }

    def _budget(self) -> int:
        """Bytes that each configuration may plan with."""
        known = [gib for gib in (self.memory_gib, self.options.memory_limit_gib) if gib is not None]
        return budget_of(min(known, default=None)) // len(self.members)

    def _refuse_too_large(self, name: str, estimate: MemoryEstimate) -> None:
        limit = self.options.memory_limit_gib
        if limit is not None and estimate.peak > limit * 2**30:
            raise ResourceError(
                f"{name}: {estimate.sentence()}, the limit is {limit:.2f} GiB. Allow more memory, or crop the image."
            )

    def _indices(
        self,
        cases: list[PreprocessedCase],
        judge: Confidence | None,
        on_tile: Callable[[int, int], None],
        on_message: Callable[[str], None],
        probabilities: bool,
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Label indices on the native grid, and probabilities if asked for."""
        streams = []
        budget = self._budget()
        for number, (member, case) in enumerate(zip(self.members, cases, strict=True)):
            for runner in member.runners:
                runner.on_warning = on_message
            estimate = member.estimate(case, budget)
            self._refuse_too_large(case.case_id, estimate)
            on_message(f"{case.case_id}: {member.name} {estimate.sentence()}")
            scratch = self.scratch if estimate.spills else None
            tiles = on_tile if len(self.members) == 1 else _share(on_tile, number, len(self.members))
            streams.append(member.blocks(case, scratch, judge if number == 0 else None, tiles))
        trail = cases[0].trail
        shape = trail.steps[-1].shape_before
        classes = self.members[0].classes
        chances = np.empty((classes, *shape), np.float32) if probabilities else None
        as_chances = probabilities or len(streams) > 1
        temperature = 1.0 if self.recipe is None else self.recipe.temperature
        thresholds = None if self.recipe is None else self.recipe.thresholds_of(self.heads.names)
        scores = mean_chances(streams, self.heads, temperature) if as_chances else streams[0]
        labels = label_blocks(
            scores, shape, len(self.plan.labels), self.heads, thresholds, chances=as_chances, keep=chances
        )
        native = undo_storage(labels[None], trail)[0]
        if chances is None:
            return native, None
        background = np.zeros(classes, np.float32)
        if not self.heads.sigmoid:
            background[0] = 1.0
        return native, undo_storage(chances, trail, fill=background)


def _written(indices: NDArray[Any], values: NDArray[np.integer]) -> NDArray[Any]:
    """The dataset's values of label indices, plane by plane: numpy looks up with eight bytes an index."""
    if np.array_equal(values, np.arange(len(values))):
        return indices
    table = values.astype(smallest_type(0, int(values.max())))
    labels = np.empty_like(indices, dtype=table.dtype)
    for given, wanted in zip(indices, labels, strict=True):
        wanted[...] = table[given]
    return labels


def _share(on_tile: Callable[[int, int], None], number: int, count: int) -> Callable[[int, int], None]:
    """Progress of one of several members, each counting as an equal share of 1000."""

    def told(done: int, total: int) -> None:
        on_tile(round(1000 * (number + done / total) / count), 1000)

    return told


def _reasons(findings: Sequence[Finding], level: str) -> str:
    return "; ".join(finding.text for finding in findings if finding.level in (level, "reject"))
