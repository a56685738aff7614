"""The predictor: loads a trained model once and turns images into masks on their own grid."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.errors import ConfigError, InputError
from medmamba.geometry import Grid
from medmamba.images import MedicalImage, label_counts, read_channels, write_label_map
from medmamba.images.image import smallest_type
from medmamba.images.in_memory import as_image
from medmamba.inference.confidence import Confidence
from medmamba.inference.member import Member
from medmamba.inference.memory import budget_of
from medmamba.inference.models import read_fingerprint, select_models
from medmamba.inference.postprocess import clean
from medmamba.inference.quality import Finding, check_image, check_result, status_of
from medmamba.inference.restore import Block, undo_storage
from medmamba.inference.sliding_window import STEP, Window
from medmamba.largest import largest_channel
from medmamba.preprocessing.case import PreprocessedCase
from medmamba.preprocessing.labels import label_names, label_values
from medmamba.training.trainer import choose_device

FAST_STEP = 0.75
"""Distance of patches of ``fast``, as a share of the patch edge."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A mask on the image's own grid: ``labels`` (i, j, k) holds the dataset's label values.

    ``status`` is "ok" or "review", ``findings`` says why. ``probabilities`` is float32 (classes, i, j, k) if asked for.
    """

    labels: NDArray[Any]
    grid: Grid
    volumes_ml: dict[str, float | None]
    voxels: dict[str, int]
    findings: tuple[Finding, ...] = ()
    entropy: float | None = None
    agreement: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    probabilities: NDArray[np.float32] | None = None
    like: MedicalImage | None = None

    @property
    def status(self) -> str:
        """``ok``, ``review`` or ``reject``."""
        return status_of(self.findings)

    def save(self, path: str | Path) -> None:
        """Write the mask on the image's own grid, in the kind of file that the ending asks for."""
        write_label_map(path, self.labels, like=self.grid if self.like is None else self.like)


class Predictor:
    """A trained model, loaded once; may be called from several threads, which take turns at the network.

    Args:
        model: a run folder, or the folder of one fold. Of a run, all trained folds of the configuration are averaged.
        configuration: one name, or several (an ensemble whose probabilities are averaged). Default: what `medmamba
            find-best` chose for the run, else the plan's default.
        folds: folds to use; all trained ones by default.
        device: auto, cpu, cuda or cuda:N. Out of memory there, the CPU takes over.
        mirror: average over the flips that the plan allows.
        fast: no mirroring, and patches that overlap by a quarter instead of half.
        patch_size: other edges than the plan's.
        tile_batch: patches that go through the network together.
        confidence: measure entropy and the agreement of the folds.
        scratch: folder for what does not fit into memory; the system's temporary folder by default.
        memory_gib: memory to plan with; by default 6 GiB, or most of what is free if that is less.
        strict: refuse a run with missing folds; a case whose status is "review" is an error.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        configuration: str | Sequence[str] | None = None,
        folds: Sequence[int | str] | None = None,
        device: str = "auto",
        mirror: bool = True,
        fast: bool = False,
        patch_size: Sequence[int] | None = None,
        tile_batch: int = 1,
        confidence: bool = True,
        scratch: str | Path | None = None,
        memory_gib: float | None = None,
        strict: bool = False,
    ) -> None:
        selection = select_models(Path(model), configuration, folds, strict=strict)
        self.device = choose_device(device)
        self.strict, self.confidence = strict, confidence
        self.scratch = Path(scratch or tempfile.gettempdir())
        self.memory_gib = memory_gib
        self.on_tile: Callable[[int, int], None] = lambda done, total: None
        self.recipe, self.remarks = selection.recipe, selection.remarks
        self._lock = threading.Lock()
        window = Window(
            tuple(patch_size or ()),
            mirror_axes=(0,) if mirror and not fast else (),
            step=FAST_STEP if fast else STEP,
            batch=tile_batch,
            skip_empty=True,
        )
        self.members = [
            Member(name, folders, self.device, window, self._lock) for name, folders in selection.folders.items()
        ]
        self.plan = self.members[0].plan
        self.heads = self.members[0].heads
        if self.recipe is not None and self.recipe.plan_sha256 != self.plan.hash():
            raise ConfigError(f"{model}: best.json belongs to another plan. Run `medmamba find-best {model}` again.")
        self.fingerprint = read_fingerprint(self.members[0].folders[0])
        self.settings: dict[str, Any] = {
            "configuration": [member.name for member in self.members],
            "folds": {member.name: [folder.name for folder in member.folders] for member in self.members},
            "mirror": bool(window.mirror_axes),
            "fast": fast,
            "step": window.step,
            "patch_size": {member.name: list(member.window.patch_size) for member in self.members},
            "tile_batch": tile_batch,
            "threads": torch.get_num_threads(),
        }

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
        """
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
        cases = [member.prepare(image, name) for member in self.members]
        prepared = time.perf_counter()
        judge = Confidence(sigmoid=self.heads.sigmoid) if self.confidence else None
        indices, chances = self._indices(cases, judge, on_tile, on_message, probabilities)
        predicted = time.perf_counter()
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
            image, indices > 0, volumes, voxels, self.fingerprint, entropy=entropy, agreement=agreement
        )
        if self.strict and status_of(findings) != "ok":
            raise InputError(f"{name}: {_reasons(findings, 'review')}. Look at the image, or leave out --strict.")
        done = time.perf_counter()
        seconds = {
            "read": read - started,
            "preprocess": prepared - read,
            "network": predicted - prepared,
            "finish": done - predicted,
        }
        values = label_values(self.plan)
        labels = values.astype(smallest_type(0, int(values.max())))[indices]
        return Prediction(
            labels, image.grid, volumes, voxels, tuple(findings), entropy, agreement, seconds, chances, image
        )

    def provenance(self) -> dict[str, Any]:
        """What made the masks: version, plan, weights, settings, device; enough to make them again."""
        from medmamba import __version__

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
        budget = budget_of(self.memory_gib) // len(self.members)
        for number, (member, case) in enumerate(zip(self.members, cases, strict=True)):
            for runner in member.runners:
                runner.on_warning = on_message
            estimate = member.estimate(case, budget)
            on_message(f"{case.case_id}: {member.name} {estimate.sentence()}")
            scratch = self.scratch if estimate.spills else None
            tiles = on_tile if len(self.members) == 1 else _share(on_tile, number, len(self.members))
            streams.append(member.blocks(case, scratch, judge if number == 0 else None, tiles))
        trail = cases[0].trail
        shape = trail.steps[-1].shape_before
        classes = self.members[0].classes
        labels = np.empty(shape, smallest_type(0, max(len(self.plan.labels) - 1, 1)))
        chances = np.empty((classes, *shape), np.float32) if probabilities else None
        as_chances = probabilities or len(streams) > 1
        for plane, rows, scores in self._scores(streams, as_chances):
            if self.heads.sigmoid:
                labels[plane, rows] = self.heads.label_map(scores, threshold=0.5 if as_chances else 0.0).numpy()
            else:
                labels[plane, rows] = largest_channel(scores).numpy()
            if chances is not None:
                chances[:, plane, rows] = scores.numpy()
        native = undo_storage(labels[None], trail)[0]
        if chances is None:
            return native, None
        background = np.zeros(classes, np.float32)
        if not self.heads.sigmoid:
            background[0] = 1.0
        return native, undo_storage(chances, trail, fill=background)

    def _scores(self, streams: list[Iterator[Block]], as_chances: bool) -> Iterator[Block]:
        """Blocks whose largest channel is the answer: logits of one configuration, or mean probabilities."""
        if not as_chances:
            yield from streams[0]
            return
        temperature = 1.0 if self.recipe is None else self.recipe.temperature
        for blocks in zip(*streams, strict=True):
            plane, rows, first = blocks[0]
            chances = self.heads.probabilities(first / temperature)
            for _, _, logits in blocks[1:]:
                chances += self.heads.probabilities(logits / temperature)
            yield plane, rows, chances.div_(len(blocks))


def _share(on_tile: Callable[[int, int], None], number: int, count: int) -> Callable[[int, int], None]:
    """Progress of one of several members, each counting as an equal share of 1000."""

    def told(done: int, total: int) -> None:
        on_tile(round(1000 * (number + done / total) / count), 1000)

    return told


def _reasons(findings: Sequence[Finding], level: str) -> str:
    return "; ".join(finding.text for finding in findings if finding.level in (level, "reject"))
