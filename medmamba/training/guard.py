"""Guards of a training: non-finite steps, networks that predict no foreground, insufficient memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save

from medmamba.disk.atomic import write_bytes
from medmamba.errors import MedmambaError, ResourceError
from medmamba.training.batches import Batch

LOWER_AFTER = 3
"""Bad steps in a row after which the learning rate is lowered."""
STOP_AFTER = 10
"""Bad steps in a row after which training stops."""
LOWERED = 0.5
"""Factor of the learning rate after a lowering."""
COLLAPSED_DICE = 0.01
"""Mean Dice below which a network counts as predicting nothing."""
COLLAPSE_EPOCHS = 3
"""Epochs in a row at such a Dice before advice is given."""


@dataclass
class FiniteGuard:
    """Counts steps that were not finite, and decides what follows."""

    rate_factor: float = 1.0
    in_a_row: int = 0
    skipped: int = 0

    def after_step(self, finite: bool, batch: Batch, folder: Path) -> str | None:
        """A line for the user when the rate is lowered; raises MedmambaError when it is time to stop."""
        if finite:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        self.skipped += 1
        cases = ", ".join(dict.fromkeys(batch.case_ids))
        if self.in_a_row >= STOP_AFTER:
            path = folder / "bad_batch.safetensors"
            tensors = {"image": batch.image.contiguous(), "label": batch.label.contiguous()}
            write_bytes(path, save(tensors, metadata={"cases": ", ".join(batch.case_ids), "step": str(batch.step)}))
            raise MedmambaError(
                f"Training stopped at step {batch.step}: loss or gradient was not finite in {self.in_a_row} steps in a "
                f"row although the rate was lowered; {_blame(batch)}The last batch (cases {cases}) is in {path}. Check "
                f"these images, or train with --precision fp32 or a lower --learning-rate."
            )
        if self.in_a_row == LOWER_AFTER:
            self.rate_factor *= LOWERED
            return (
                f"Loss or gradient not finite in {self.in_a_row} steps in a row (last cases: {cases}); the steps were "
                f"skipped and the learning rate is lowered to {self.rate_factor:g} of the schedule's."
            )
        return None


def collapse_advice(dices: Sequence[float | None], foreground_fraction: float | None) -> str | None:
    """Advice when the last epochs found no structure at all; None while all is well.

    ``dices`` are the mean Dice of each epoch so far; ``foreground_fraction`` the fraction of voxels predicted as
    foreground now.
    """
    last = dices[-COLLAPSE_EPOCHS:]
    if len(last) < COLLAPSE_EPOCHS or any(dice is None or dice >= COLLAPSED_DICE for dice in last):
        return None
    if foreground_fraction is not None and foreground_fraction > 0.5:
        seen = "everything is predicted as foreground"
    elif not foreground_fraction:
        seen = "everything is predicted as background"
    else:
        seen = "what is predicted lies nowhere near the truth"
    return (
        f"The Dice stayed below {COLLAPSED_DICE} for {COLLAPSE_EPOCHS} epochs: {seen}. Check the label maps "
        f"(medmamba plan shows the voxels of each label); then try --learning-rate 3e-4, --sampling lesion for small "
        f"structures, --loss dice_focal or --class-weights, or the baseline --network plain_unet."
    )


def _blame(batch: Batch) -> str:
    """The cases of the batch whose image itself is not finite."""
    bad = [name for name, image in zip(batch.case_ids, batch.image, strict=True) if not image.isfinite().all()]
    return f"the image of {', '.join(dict.fromkeys(bad))} holds NaN or Inf. " if bad else ""


@dataclass(frozen=True)
class MemorySettings:
    """What training puts into memory: patches per batch, edges of a patch, whether activations are recomputed."""

    batch_size: int
    patch_size: tuple[int, ...]
    recompute: bool

    def __str__(self) -> str:
        patch = " x ".join(str(edge) for edge in self.patch_size)
        return f"batch {self.batch_size}, patch {patch}{', activations recomputed' if self.recompute else ''}"


def smaller_fit(fit: MemorySettings, divisor: Sequence[int], can_recompute: bool) -> MemorySettings:
    """Smaller settings after memory ran out; raises ResourceError when nothing can be reduced further.

    First the batch is halved down to one patch, then activations are recomputed, then a patch loses one ``divisor``
    (the product of the network's strides) of its longest edge in these units, down to two of them.
    """
    if fit.batch_size > 1:
        return MemorySettings(fit.batch_size // 2, fit.patch_size, fit.recompute)
    if not fit.recompute and can_recompute:
        return MemorySettings(fit.batch_size, fit.patch_size, True)
    units = [edge // step for edge, step in zip(fit.patch_size, divisor, strict=True)]
    if max(units) <= 2:
        raise ResourceError(
            f"Out of memory even with {fit}. Use a device with more memory, plan again for this one "
            f"(--device-memory), or train a smaller network (--network plain_unet)."
        )
    axis = units.index(max(units))
    patch = list(fit.patch_size)
    patch[axis] = divisor[axis] * max(2, units[axis] * 3 // 4)
    return MemorySettings(fit.batch_size, tuple(patch), fit.recompute)
