"""Batches for training: read patches of preprocessed cases, augment them, keep the workers in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import blosc2
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter

from medmamba.errors import ResourceError
from medmamba.preprocessing.store import CaseReader
from medmamba.training.augmentation import AugmentationPlan, augment, draw_spatial
from medmamba.training.sampling import choose_patch, must_show_foreground, sample_rng


@dataclass(frozen=True)
class Batch:
    """Images (B, C, ...) float32, label maps (B, 1, ...) int64, and the cases they came from."""

    step: int
    image: torch.Tensor
    label: torch.Tensor
    case_ids: tuple[str, ...]


class PatchSource:
    """Makes the batch of any step from (seed, step) alone.

    It also speaks batchgenerators' loader protocol: each worker holds a copy with its own ``thread_id`` and yields
    every n-th step, and the augmenter collects them in turn. So the order of the batches never depends on timing.
    """

    def __init__(
        self,
        cases: Sequence[CaseReader],
        augmentation: AugmentationPlan,
        batch_size: int,
        *,
        seed: int,
        first_step: int = 0,
        augmented: bool = True,
    ) -> None:
        self.cases = list(cases)
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.augmented = augmented
        self.thread_id = 0
        self.number_of_threads_in_multithreaded = 1
        self._flat = len(augmentation.patch_size) == 2
        self._next_step: int | None = None

    def set_thread_id(self, thread_id: int) -> None:
        """Called by batchgenerators in each worker."""
        self.thread_id = thread_id

    def __iter__(self) -> PatchSource:
        return self

    def __next__(self) -> dict[str, object]:
        if self._next_step is None:
            # the worker's own settings: the training process keeps its threads
            torch.set_num_threads(1)
            blosc2.set_nthreads(1)
            self._next_step = self.first_step + self.thread_id
        batch = self.batch(self._next_step)
        self._next_step += self.number_of_threads_in_multithreaded
        # numpy arrays, because tensors would travel through shared memory, which containers often limit
        return {"step": batch.step, "image": batch.image.numpy(), "label": batch.label.numpy(), "ids": batch.case_ids}

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        samples = [self._sample(step, index) for index in range(self.batch_size)]
        return Batch(
            step,
            torch.stack([image for image, _, _ in samples]),
            torch.stack([label for _, label, _ in samples]).long(),
            tuple(case_id for _, _, case_id in samples),
        )

    def _sample(self, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        rng = sample_rng(self.seed, step, index)
        spatial = draw_spatial(rng, self.augmentation) if self.augmented else None
        size = self.augmentation.patch_size if spatial is None else self.augmentation.enlarged_size
        if self._flat:
            size = (1, *size)
        choice = choose_patch(
            rng,
            [case.shape for case in self.cases],
            [case.locations for case in self.cases],
            size,
            on_foreground=must_show_foreground(index, self.batch_size),
        )
        case = self.cases[choice.case_index]
        image, label = case.read_patch(choice.start, size)
        if self._flat:
            image, label = image[:, 0], label[:, 0]
        image_tensor, label_tensor = torch.from_numpy(image), torch.from_numpy(label).float()
        if self.augmented:
            image_tensor, label_tensor = augment(image_tensor, label_tensor, self.augmentation, spatial, rng)
        return image_tensor, label_tensor, case.case_id


def batches(source: PatchSource, workers: int) -> Iterator[Batch]:
    """Batches from ``source.first_step`` on, for ever; made in this process when ``workers`` is 0."""
    if workers == 0:
        step = source.first_step
        while True:
            yield source.batch(step)
            step += 1
    source.number_of_threads_in_multithreaded = workers
    augmenter = MultiThreadedAugmenter(source, None, workers, num_cached_per_queue=2, seeds=[source.seed] * workers)
    try:
        for made in augmenter:
            yield Batch(made["step"], torch.from_numpy(made["image"]), torch.from_numpy(made["label"]), made["ids"])
    except RuntimeError as error:
        if "workers" not in str(error):
            raise
        raise ResourceError(
            "A data worker died (most often out of memory). Run again with --resume and --workers 0 to make batches "
            "in the main process, or with fewer workers."
        ) from error
    finally:
        augmenter._finish()
