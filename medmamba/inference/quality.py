"""Quality control: warnings where an image or its mask is unlike those the model was trained on.

Every warning (finding) has a level: "note" changes nothing, "review" asks a person to look at the mask, "reject" means
that no mask should be made. Thresholds are deliberately wide: they are to catch another body part, another modality, a
damaged scale or a lost header, not a slightly different protocol.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry import Grid
from medmamba.geometry.trail import Reorient
from medmamba.images import MedicalImage
from medmamba.inference.finding import Finding
from medmamba.models.prediction_setup import Limits
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.mirroring import side_pairs
from medmamba.preprocessing.labels import mean_voxel

RANGE = (0.5, 2.0)
"""Spacing and field of view may lie between these multiples of the training's smallest and largest."""
VOLUME_RANGE = (0.2, 5.0)
"""Volumes may lie between these multiples of the training's smallest and largest."""
SPREAD = 3.0
"""Intensities may lie this many interquartile ranges outside the training's 0.5th and 99.5th percentile."""
AIR_HU = -500.0
"""A CT whose training images went below this and that itself holds nothing negative has another scale."""
FIXED_LIMITS = Limits(max_entropy=0.5, min_agreement=0.7, cases=None)
"""Where a network counts as undecided, and the folds as contradicting each other, for a run without find-best, or with
too few cases for it to measure (see model_selection/run.py)."""
SAMPLE = 200_000
"""Voxels that intensity statistics are taken from."""


def check_image(image: MedicalImage, fingerprint: Fingerprint | None) -> Iterator[Finding]:
    """Warnings about an image, before anything is predicted."""
    if len(image.constant_channels) == image.channels:
        yield Finding("reject", "all voxels have the same value: the image is empty")
    elif image.constant_channels:
        which = ", ".join(map(str, image.constant_channels))
        yield Finding("review", f"channel {which} has one value only")
    if image.nonfinite_voxels:
        yield Finding("review", f"{image.nonfinite_voxels} voxels were not finite and were set to 0")
    if fingerprint is None:
        yield Finding("note", "the model has no fingerprint: the image was not compared with its training data")
        return
    yield from _geometry(image, fingerprint)
    if len(image.constant_channels) < image.channels:
        yield from _scale(image, fingerprint)


def check_confidence(entropy: float | None, agreement: float | None, limits: Limits | None) -> Iterator[Finding]:
    """Warnings about uncertain networks; ``limits`` are those of find-best, None the fixed ones."""
    limits = limits or FIXED_LIMITS
    source = "a fixed limit" if limits.cases is None else f"from {limits.cases} validation cases"
    if entropy is not None and entropy > limits.max_entropy:
        text = f"mean entropy {entropy:.2f} of the foreground (limit {limits.max_entropy:.2f}, {source})"
        yield Finding("review", f"the network is uncertain: {text}")
    if agreement is not None and agreement < limits.min_agreement:
        text = f"a fold has Dice {agreement:.2f} with it (limit {limits.min_agreement:.2f}, {source})"
        yield Finding("review", f"the folds disagree: {text}")


def check_mask(
    image: MedicalImage,
    labels: NDArray[np.integer],
    volumes_ml: Mapping[str, float | None],
    voxels: Mapping[str, int],
    fingerprint: Fingerprint,
) -> Iterator[Finding]:
    """Warnings about a mask of label indices (i, j, k): intensities inside it, and its volumes."""
    if any(voxels.values()):
        yield from _intensities(image, labels, sum(voxels.values()), fingerprint)
    for name, count in voxels.items():
        of_training = [case.label_voxels.get(name, 0) for case in fingerprint.cases]
        if count == 0 and of_training and min(of_training) > 0:
            yield Finding("review", f"no {name} was found; all {len(of_training)} training cases have it")
        volume = volumes_ml.get(name)
        known = [case.volume_ml[name] for case in fingerprint.cases if case.volume_ml and case.label_voxels.get(name)]
        if count and volume is not None and known and _is_outside(volume, known, VOLUME_RANGE):
            yield Finding("review", f"{name} has {volume:.3g} ml, training {min(known):.3g} to {max(known):.3g} ml")


def check_sides(
    labels: NDArray[np.integer], names: Sequence[str], grid: Grid, fingerprint: Fingerprint
) -> Iterator[Finding]:
    """Pairs of left and right labels (``names`` of the indices 1, 2, ...) that are exchanged in position."""
    if grid.affine is None:
        return
    for pair in side_pairs(fingerprint):
        if not pair.cases or pair.right_is_right not in (0, pair.cases) or pair.left not in names:
            continue
        centres = [mean_voxel(labels, 1 + list(names).index(name)) for name in (pair.left, pair.right)]
        left, right = (float(grid.affine[0, :3] @ centre) for centre in centres)  # NaN for a missing label
        if not math.isnan(right - left) and (right > left) != (pair.right_is_right == pair.cases):
            text = f"{pair.left} and {pair.right} are exchanged in position, unlike all {pair.cases} training cases"
            yield Finding("review", f"{text}: are left and right exchanged in the header?")


def _geometry(image: MedicalImage, fingerprint: Fingerprint) -> Iterator[Finding]:
    if (image.grid.spacing_mm is not None) != fingerprint.has_millimetres:
        has, have = ("no millimetres", "have") if fingerprint.has_millimetres else ("millimetres", "have none")
        yield Finding("review", f"the image has {has}, the training images {have}")
    if image.grid.spacing_mm is None or not fingerprint.has_millimetres:
        return
    canonical = Reorient.to_canonical(image.grid).grid_after(image.grid)
    assert canonical.spacing_mm is not None
    assert canonical.extent_mm is not None
    if not fingerprint.knows_axes:
        pairs = zip(sorted(canonical.spacing_mm), np.sort(fingerprint.spacings).T, strict=True)
        for name, (value, of_training) in zip(("smallest", "middle", "largest"), pairs, strict=True):
            yield from _far_off(f"{name} spacing", value, of_training.tolist())
        return
    views = [case.field_of_view_mm for case in fingerprint.cases if case.field_of_view_mm is not None]
    for axis, name in enumerate(("left-right", "front-back", "head-foot")):
        spacings = [float(mm) for mm in fingerprint.spacings[:, axis]]
        for what, value, of_training in (
            ("spacing", canonical.spacing_mm[axis], spacings),
            ("field of view", canonical.extent_mm[axis], [view[axis] for view in views]),
        ):
            yield from _far_off(f"{what} {name}", value, of_training)
    stored = {case.orientation for case in fingerprint.cases}
    if image.grid.orientation not in stored and None not in stored:
        text = f"stored as {image.grid.orientation}, the training images as {', '.join(sorted(map(str, stored)))}"
        yield Finding("note", text)
    if not image.orientation_known:
        yield Finding("review", "the file does not state its left-right orientation")


def _far_off(what: str, value: float, of_training: Sequence[float]) -> Iterator[Finding]:
    if _is_outside(value, of_training, RANGE):
        known = f"{min(of_training):.3g} to {max(of_training):.3g} mm"
        yield Finding("review", f"{what} is {value:.3g} mm, training {known}")


def _is_outside(value: float, of_training: Sequence[float], multiples: tuple[float, float]) -> bool:
    return not multiples[0] * min(of_training) <= value <= multiples[1] * max(of_training)


def _scale(image: MedicalImage, fingerprint: Fingerprint) -> Iterator[Finding]:
    for name, channel, known in zip(fingerprint.channel_names, image.array, fingerprint.intensities, strict=False):
        values = channel.ravel(order="K")
        values = values[:: max(1, math.ceil(values.size / SAMPLE))]
        low, high = float(values.min()), float(values.max())
        if high < known.percentile_00_5 or low > known.percentile_99_5:
            training = f"{known.percentile_00_5:.4g} and {known.percentile_99_5:.4g} in training"
            text = f"intensities of {name} are {low:.4g} to {high:.4g}; those of the structures {training}"
            yield Finding("review", text)
        elif known.min < AIR_HU and low >= 0:
            text = f"{name} has no negative value, training down to {known.min:.4g}: another scale?"
            yield Finding("review", text)


def _intensities(
    image: MedicalImage, labels: NDArray[np.integer], count: int, fingerprint: Fingerprint
) -> Iterator[Finding]:
    step = max(1, math.ceil(count / SAMPLE))
    drawn = [image.array[..., k][:, labels[..., k] > 0][:, ::step] for k in range(labels.shape[2])]
    medians = [float(np.median(channel)) for channel in np.concatenate(drawn, axis=1)]
    known = fingerprint.intensities[: len(medians)]
    if len(medians) > 1 and len(known) == len(medians):
        order = _likely_order(medians, [k.median for k in known], [max(k.std, 1e-6) for k in known])
        if order is not None:
            names = ", ".join(fingerprint.channel_names[index] for index in order)
            yield Finding("review", f"the channels look swapped: they resemble {names}, in this order")
            return
    for name, median, channel in zip(fingerprint.channel_names, medians, known, strict=False):
        upper = channel.percentiles.get("75", channel.mean + channel.std)
        slack = SPREAD * (upper - channel.percentiles.get("25", channel.mean - channel.std))
        low, high = channel.percentile_00_5 - slack, channel.percentile_99_5 + slack
        if not low <= median <= high:
            text = f"median of {name} inside the mask is {median:.4g}, outside {low:.4g} to {high:.4g} of training"
            yield Finding("review", text)


def _likely_order(medians: Sequence[float], means: Sequence[float], stds: Sequence[float]) -> tuple[int, ...] | None:
    """Which training channel each channel resembles, if another order fits much better than the given one."""
    count = len(medians)
    if count > 6:
        return None

    def misfit(order: Sequence[int]) -> float:
        return sum(abs(medians[i] - means[order[i]]) / stds[order[i]] for i in range(count))

    given = misfit(range(count))
    best = min(permutations(range(count)), key=misfit)
    swapped = best != tuple(range(count)) and given > count and misfit(best) < 0.5 * given
    return best if swapped else None
