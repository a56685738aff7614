"""Batches for training: patches of preprocessed cases, augmented, each a function of its step alone."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch

from medmamba.inference.cascade import one_hot
from medmamba.models.output_channels import OutputChannels
from medmamba.preprocessing.store import CaseReader
from medmamba.training.augmentation import AugmentationPlan, augment, centre, draw_sample, draw_spatial
from medmamba.training.cascade import disturbed
from medmamba.training.device_augmentation import augment_batch
from medmamba.training.sampling import choose_patch, must_show_foreground, sample_rng

DEVICE_STREAM = 2_000_000
"""Sample number from which the random streams of batches augmented as a whole count, apart from those of patches."""
NOTE_BYTES = 256
"""Length of the note in which a worker says what it is at; always rewritten in place."""


@dataclass(frozen=True)
class Batch:
    """Images (B, C, ...) float32, label maps (B, 1, ...) int64, and the cases they came from.

    ``annotated`` (B, heads) says which heads a case can teach; None: all of them.
    """

    step: int
    image: torch.Tensor
    label: torch.Tensor
    case_ids: tuple[str, ...]
    annotated: torch.Tensor | None = None


class PatchSource:
    """Makes the batch of any step from (seed, step) alone.

    It also speaks batchgenerators' loader protocol: each worker holds a copy that yields every n-th step, and the
    supervisor collects them in turn. So the order of the batches never depends on timing. ``samples`` are the samples
    of each batch that this process makes, when several share the work. ``previous_labels`` are the labels of a
    cascade's first stage, which become channels of the image. ``body_channels`` are 0 outside the body, also after
    augmentation. With ``augmented="device"`` the patches leave the workers as they were read, for :meth:`finished` to
    augment.
    """

    def __init__(
        self,
        cases: Sequence[CaseReader],
        augmentation: AugmentationPlan,
        batch_size: int,
        *,
        seed: int,
        first_step: int = 0,
        augmented: str = "cpu",
        heads: OutputChannels | None = None,
        sampling: str = "foreground",
        samples: range | None = None,
        previous_labels: int = 0,
        body_channels: Sequence[int] = (),
    ) -> None:
        self.cases = list(cases)
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.augmented = augmented == "cpu"
        self.raw = augmented == "device"
        self.previous_labels = previous_labels
        self.body_channels = list(body_channels) if self.augmented or self.raw else []
        self.lesion_aware = sampling == "lesion"
        self._annotated = annotated_heads(cases, heads)
        self.stride = 1
        self.notes: Path | None = None
        self.samples = range(batch_size) if samples is None else samples
        self._at = ""
        self._notes_file: int | None = None
        self._flat = len(augmentation.patch_size) == 2
        self._next_step: int | None = None

    def for_worker(self, first_step: int, stride: int, notes: Path) -> PatchSource:
        """A copy that yields every ``stride``-th batch and writes down which case it is at."""
        own = copy.copy(self)
        own.first_step, own.stride, own.notes, own._next_step = first_step, stride, notes, None
        return own

    def set_thread_id(self, thread_id: int) -> None:
        """Part of batchgenerators' loader protocol; the steps of a worker are decided by :meth:`for_worker`."""

    def __iter__(self) -> PatchSource:
        return self

    def __next__(self) -> dict[str, object]:
        if self._next_step is None:
            # the worker's own settings: the training process keeps its threads
            torch.set_num_threads(1)
            blosc2.set_nthreads(1)
            threading.Thread(target=end_with_parent, daemon=True).start()
            self._next_step = self.first_step
        try:
            batch = self.batch(self._next_step)
        except Exception as error:  # sent to the training process, which names the case and stops
            return {"error": f"{self._at}: {type(error).__name__}: {error}"}
        self._next_step += self.stride
        # numpy arrays, because tensors would travel through shared memory, which containers often limit
        return {"step": batch.step, "image": batch.image.numpy(), "label": batch.label.numpy(), "ids": batch.case_ids}

    def as_batch(self, made: dict[str, Any]) -> Batch:
        """What a worker sent, as tensors."""
        ids = tuple(made["ids"])
        image, label = torch.from_numpy(made["image"]), torch.from_numpy(made["label"])
        return Batch(made["step"], image, label, ids, self._annotated_in(ids))

    def _annotated_in(self, case_ids: tuple[str, ...]) -> torch.Tensor | None:
        return None if self._annotated is None else torch.tensor([self._annotated[name] for name in case_ids])

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        samples = [self._sample(step, index) for index in self.samples]
        ids = tuple(case_id for _, _, case_id in samples)
        images, labels = _framed([image for image, _, _ in samples]), _framed([label for _, label, _ in samples])
        return Batch(step, images, labels.long(), ids, self._annotated_in(ids))

    def finished(self, batch: Batch, device: torch.device) -> Batch:
        """The batch as the network gets it: augmented on the device if the workers left it raw."""
        if not self.raw:
            return batch
        draws = []
        for index in self.samples:
            spatial = draw_spatial(sample_rng(self.seed, batch.step, index), self.augmentation)
            rng = sample_rng(self.seed, batch.step, DEVICE_STREAM + index)
            draws.append(draw_sample(rng, self.augmentation, spatial, batch.image.shape[1]))
        image, label = batch.image.to(device), batch.label.to(device)
        image, label = augment_batch(image, label, self.augmentation, draws)
        if self.body_channels:
            image[:, self.body_channels] *= label[:, -1:] > 0
            label = label[:, :-1]
        return replace(batch, image=image, label=label)

    def _sample(self, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        rng = sample_rng(self.seed, step, index)
        spatial = draw_spatial(rng, self.augmentation) if self.augmented or self.raw else None
        size = self.augmentation.patch_size if spatial is None else self.augmentation.enlarged_size
        if self._flat:
            size = (1, *size)
        choice = choose_patch(
            rng,
            [case.shape for case in self.cases],
            [case.locations for case in self.cases],
            size,
            on_foreground=must_show_foreground(index, self.batch_size),
            lesions=[case.lesions for case in self.cases] if self.lesion_aware else None,
            annotated=[case.annotated_voxels for case in self.cases],
        )
        case = self.cases[choice.case_index]
        self._note(f"case {case.case_id} (step {step}, sample {index})")
        image, label = case.read_patch(choice.start, size)
        if self.previous_labels:  # travels as a second label map, so that it stays crisp
            label = np.concatenate([label, case.read_previous_patch(choice.start, size)])
        if self.body_channels:  # as yet another
            label = np.concatenate([label, case.read_body_patch(choice.start, size)])
        if self._flat:
            image, label = image[:, 0], label[:, 0]
        image_tensor, label_tensor = torch.from_numpy(image), torch.from_numpy(label).float()
        if self.augmented:
            draw = draw_sample(rng, self.augmentation, spatial, len(image_tensor))
            image_tensor, label_tensor = augment(image_tensor, label_tensor, self.augmentation, draw)
            if self.body_channels:
                image_tensor[self.body_channels] *= label_tensor[-1:] > 0
                label_tensor = label_tensor[:-1]
        if self.previous_labels:
            label_tensor, before = label_tensor[:1], label_tensor[1].numpy()
            channels = one_hot(before, self.previous_labels)
            channels = disturbed(channels, rng) if self.augmented else channels
            image_tensor = torch.cat([image_tensor, torch.from_numpy(channels)])
        return image_tensor, label_tensor, case.case_id

    def _note(self, text: str) -> None:
        self._at = text
        if self.notes is not None:
            if self._notes_file is None:
                self._notes_file = os.open(self.notes, os.O_WRONLY | os.O_CREAT)
            os.pwrite(self._notes_file, text.encode()[:NOTE_BYTES].ljust(NOTE_BYTES), 0)


def end_with_parent() -> None:
    """A killed process cannot end its workers; each sees to it, in a thread, that it does not outlive it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _framed(patches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Patches (C, ...) of two sizes as one batch: the smaller ones in the centre of zeros."""
    frame = [max(edges) for edges in zip(*(patch.shape[1:] for patch in patches), strict=True)]
    batch = patches[0].new_zeros((len(patches), len(patches[0]), *frame))
    for place, patch in zip(batch, patches, strict=True):
        place[centre(frame, patch.shape[1:])] = patch
    return batch


def annotated_heads(cases: Sequence[CaseReader], heads: OutputChannels | None) -> dict[str, list[bool]] | None:
    """For each case the heads that it can teach; None when all cases teach all of them."""
    if heads is None or all(case.annotated is None for case in cases):
        return None
    return {case.case_id: heads.annotated(case.annotated) for case in cases}
