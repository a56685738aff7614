"""Batches for training: patches of preprocessed cases, drawn and augmented by (seed, step, sample) alone.

Nothing depends on the order in which workers answer, so a run with four workers, a run with none and a resumed run
see the same patches.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch

from medmamba.errors import InputError
from medmamba.inference.cascade import one_hot
from medmamba.models.output_channels import OutputChannels
from medmamba.preprocessing.store import CaseReader
from medmamba.training.augmentation import AugmentationPlan, augment, augment_one, centre, draw_sample, draw_spatial
from medmamba.training.cascade import disturbed
from medmamba.training.config import Augment, Sampling

DEVICE_STREAM = 2_000_000
"""Added to the sample number: batches augmented as a whole have random streams apart from those of patches."""
FOREGROUND_FRACTION = 0.33
"""Fraction of a batch whose patches must contain foreground (nnU-Net v2)."""
NOTE_BYTES = 256
"""Length of a worker's current status on disk; always rewritten in place."""


@dataclass(frozen=True)
class Batch:
    """Images (B, C, ...) float32, label maps (B, 1, ...), and the cases they came from.

    Labels are uint8 or int16 until :meth:`PatchSource.finished` makes them int64.

    Attributes:
        annotated: (B, C), which output channels are annotated in each case; None: all.
        enlarged: of samples that are still to be turned, in their order, image (C, ...) and label map in the size that
            covers the corners; ``image`` and ``label`` hold their centre.
    """

    step: int
    image: torch.Tensor
    label: torch.Tensor
    case_ids: tuple[str, ...]
    annotated: torch.Tensor | None = None
    enlarged: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The batch with every tensor changed, copied for example."""
        return replace(
            self,
            image=change(self.image),
            label=change(self.label),
            annotated=None if self.annotated is None else change(self.annotated),
            enlarged=tuple((change(image), change(label)) for image, label in self.enlarged),
        )


@dataclass(frozen=True)
class PatchRecipe:
    """How patches are drawn from cases and augmented.

    Attributes:
        augmentation: patch size, rotations, mirroring.
        batch_size: patches of a batch.
        seed: of every random stream.
        augment: "cpu" (in :meth:`PatchSource.batch`), "device" (in :meth:`PatchSource.finished`) or "none".
        sampling: "foreground", or "lesion": every connected component equally often.
        channels: what the output channels mean, for cases that are annotated in part; None: all are annotated.
        previous_labels: labels of a cascade's first stage, which become channels of the image.
        masked_channels: image channels that are 0 outside the nonzero mask, also after augmentation.
        samples: the samples of each batch that this process makes, when several share the work; None: all.
    """

    augmentation: AugmentationPlan
    batch_size: int
    seed: int
    augment: Augment = "cpu"
    sampling: Sampling = "foreground"
    channels: OutputChannels | None = None
    previous_labels: int = 0
    masked_channels: tuple[int, ...] = ()
    samples: range | None = None


class PatchSource:
    """Makes the batch of any step from (seed, step) alone.

    It also speaks batchgenerators' loader protocol: each worker holds a copy that yields every n-th step.
    """

    def __init__(self, cases: Sequence[CaseReader], recipe: PatchRecipe, first_step: int = 0) -> None:
        self.cases = list(cases)
        self.recipe = recipe
        self.first_step = first_step
        self.stride = 1
        self.notes: Path | None = None
        self._samples = range(recipe.batch_size) if recipe.samples is None else recipe.samples
        self._masked = [] if recipe.augment == "none" else list(recipe.masked_channels)
        self._annotated: dict[str, list[bool]] | None = None  # all channels in all cases
        if recipe.channels is not None and any(case.annotated is not None for case in cases):
            self._annotated = {case.case_id: recipe.channels.annotated(case.annotated) for case in cases}
        self._at = ""
        self._notes_file: int | None = None
        self._flat = len(recipe.augmentation.patch_size) == 2
        self._next_step: int | None = None

    def for_worker(self, first_step: int, stride: int, notes: Path) -> "PatchSource":
        """A copy that yields every ``stride``-th batch and writes down which case it reads."""
        own = copy.copy(self)
        own.first_step, own.stride, own.notes, own._next_step = first_step, stride, notes, None
        return own

    def set_thread_id(self, thread_id: int) -> None:
        """Part of batchgenerators' loader protocol; the steps of a worker are decided by :meth:`for_worker`."""

    def __iter__(self) -> "PatchSource":
        return self

    def __next__(self) -> dict[str, object]:
        if self._next_step is None:
            # the worker's own settings: the training process keeps its threads
            torch.set_num_threads(1)
            blosc2.set_nthreads(1)
            self._next_step = self.first_step
        try:
            batch = self.batch(self._next_step)
        except Exception as error:  # sent to the training process, which names the case and stops
            return {"error": f"{self._at}: {type(error).__name__}: {error}"}
        self._next_step += self.stride
        tensors = [batch.image, batch.label, *(tensor for pair in batch.enlarged for tensor in pair)]
        return {"step": batch.step, "ids": batch.case_ids, "arrays": [tensor.numpy() for tensor in tensors]}

    def as_batch(self, made: dict[str, Any]) -> Batch:
        """What a worker sent, as tensors on the same memory."""
        ids = tuple(made["ids"])
        image, label, *others = (torch.from_numpy(array) for array in made["arrays"])
        enlarged = tuple(zip(others[::2], others[1::2], strict=True))
        return Batch(made["step"], image, label, ids, self._annotated_in(ids), enlarged)

    def largest_batch(self) -> int:
        """About the bytes of the largest batch that a worker sends."""
        try:
            channels = CaseReader(self.cases[0].folder).channels  # opened anew: workers share no open file
        except InputError:  # which the worker meets, too, and reports
            channels = 1
        plan, recipe = self.recipe.augmentation, self.recipe
        voxels = prod(plan.patch_size) + (prod(plan.enlarged_size) if recipe.augment == "device" else 0)
        maps = 2 + (recipe.previous_labels > 0)  # label maps, of two bytes
        return len(self._samples) * voxels * (4 * (channels + recipe.previous_labels) + 2 * maps)

    def _annotated_in(self, case_ids: tuple[str, ...]) -> torch.Tensor | None:
        return None if self._annotated is None else torch.tensor([self._annotated[name] for name in case_ids])

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        samples = [self._sample(step, index) for index in self._samples]
        patch = self.recipe.augmentation.patch_size
        ids = tuple(case_id for _, _, case_id in samples)
        image = torch.stack([image[centre(image.shape[1:], patch)] for image, _, _ in samples])
        label = _smallest(torch.stack([label[centre(label.shape[1:], patch)] for _, label, _ in samples]))
        enlarged = tuple(
            (image, _smallest(label)) for image, label, _ in samples if tuple(image.shape[1:]) != tuple(patch)
        )
        return Batch(step, image, label, ids, self._annotated_in(ids), enlarged)

    def finished(self, batch: Batch) -> Batch:
        """The batch as the network gets it, where it is: augmented if the workers left it raw, labels int64."""
        label = batch.label.long()
        if self.recipe.augment != "device":
            return replace(batch, label=label)
        draws, plan, seed = [], self.recipe.augmentation, self.recipe.seed
        for index in self._samples:
            spatial = draw_spatial(sample_rng(seed, batch.step, index), plan)
            rng = sample_rng(seed, batch.step, DEVICE_STREAM + index)
            draws.append(draw_sample(rng, plan, spatial, batch.image.shape[1]))
        image, label = self._zeroed(*augment(batch.image, label, plan, draws, batch.enlarged))
        return replace(batch, image=image, label=label, enlarged=())

    def _zeroed(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masked channels, zero outside the mask that is the last label map, and the label maps without it."""
        for channel in self._masked:
            image[:, channel : channel + 1] *= label[:, -1:] > 0
        if self._masked:
            label = label[:, :-1]
        return image, label

    def _sample(self, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        recipe, plan = self.recipe, self.recipe.augmentation
        rng = sample_rng(recipe.seed, step, index)
        spatial = None if recipe.augment == "none" else draw_spatial(rng, plan)
        size = plan.patch_size if spatial is None else plan.enlarged_size
        if self._flat:
            size = (1, *size)
        on_foreground = must_show_foreground(index, recipe.batch_size)
        by_lesion = recipe.sampling == "lesion"
        case, start = choose_patch(rng, self.cases, size, on_foreground=on_foreground, by_lesion=by_lesion)
        self._note(f"case {case.case_id} (step {step}, sample {index})")
        image, label = case.read_patch(start, size)
        if recipe.previous_labels:  # travels as a second label map, so that it stays crisp
            label = np.concatenate([label, case.read_previous_patch(start, size)])
        if self._masked:  # a further label map
            label = np.concatenate([label, case.read_body_patch(start, size)])
        if self._flat:
            image, label = image[:, 0], label[:, 0]
        image_tensor, label_tensor = torch.from_numpy(image), torch.from_numpy(label)
        if recipe.augment == "cpu":
            draw = draw_sample(rng, plan, spatial, len(image_tensor))
            image_tensor, label_tensor = augment_one(image_tensor, label_tensor.float(), plan, draw)
            images, labels = self._zeroed(image_tensor[None], label_tensor[None].to(torch.int16))
            image_tensor, label_tensor = images[0], labels[0]
        if recipe.previous_labels:
            label_tensor, before = label_tensor[:1], label_tensor[1].numpy()
            channels = one_hot(before, recipe.previous_labels)
            channels = disturbed(channels, rng) if recipe.augment == "cpu" else channels
            image_tensor = torch.cat([image_tensor, torch.from_numpy(channels)])
        return image_tensor, label_tensor, case.case_id

    def _note(self, text: str) -> None:
        self._at = text
        if self.notes is not None:
            if self._notes_file is None:
                self._notes_file = os.open(self.notes, os.O_WRONLY | os.O_CREAT)
            os.lseek(self._notes_file, 0, os.SEEK_SET)
            os.write(self._notes_file, text.encode()[:NOTE_BYTES].ljust(NOTE_BYTES))


def sample_rng(seed: int, step: int, sample: int) -> np.random.Generator:
    """The random stream of one sample of one batch."""
    return np.random.default_rng([seed, step, sample])


def must_show_foreground(sample: int, batch_size: int) -> bool:
    """Whether this sample of the batch is forced onto foreground: the last third of the batch.

    Source: nnU-Net v2, ``dataloading/data_loader.py`` (rounding included: 1 of 2, 1 of 3, 1 of 4, 2 of 5).
    """
    return not sample < round(batch_size * (1 - FOREGROUND_FRACTION))


def choose_patch(
    rng: np.random.Generator,
    cases: Sequence[CaseReader],
    size: tuple[int, ...],
    *,
    on_foreground: bool,
    by_lesion: bool = False,
) -> tuple[CaseReader, tuple[int, ...]]:
    """Draw a case uniformly and a patch of ``size`` in it: its first voxel on the plan's grid, which may lie outside.

    On foreground: label uniform among those present, voxel uniform, patch centred on it and moved only as far as needed
    to stay near the volume. A volume smaller than the patch is centred with a free margin. ``by_lesion`` draws a
    connected component before a voxel, so that a lesion of ten voxels is seen as often as one of ten thousand.

    In a case with ignored voxels every patch is centred on one that is not, so that it contributes to the loss.
    """
    case = cases[int(rng.integers(len(cases)))]
    lowest, highest = [], []
    for edge, extent in zip(size, case.shape, strict=True):
        missing = max(edge - extent, 0)
        lowest.append(-(missing // 2))
        highest.append(extent - edge + missing // 2 + missing % 2)
    present = [label for label, voxels in sorted(case.locations.items()) if len(voxels)] if on_foreground else []
    if present:
        label = present[int(rng.integers(len(present)))]
        voxels = case.locations[label]
        if by_lesion:
            component = case.lesions[label]
            voxels = voxels[component == rng.choice(np.unique(component))]
    elif case.annotated_voxels is not None:
        voxels = case.annotated_voxels
    else:
        return case, tuple(int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True))
    start = voxels[int(rng.integers(len(voxels)))] - np.array(size) // 2
    return case, tuple(int(first) for first in np.clip(start, lowest, highest))


def _smallest(labels: torch.Tensor) -> torch.Tensor:
    """Label indices in the smallest type that holds them: they are sent and copied before the network gets them."""
    return labels.to(torch.uint8) if labels.max() < 256 else labels.to(torch.int16)
