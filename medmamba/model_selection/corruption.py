"""Harmed copies of preprocessed cases, so that expectations are learned from bad masks as well as from good ones.

Each harm takes an image (C, I, J, K) and its labels (I, J, K) on the plan's grid, a strength from 0 to 1 and a
generator, and gives both anew: labels change with an image that shows another part of the body or is turned.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Labels = NDArray[np.int16]
Harm = Callable[[Image, Labels, float, np.random.Generator], tuple[Image, Labels]]
SMOOTH_CELLS = 3
"""Nodes of a bias field along each axis."""


def noise(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """Gaussian noise of up to one and a half standard deviations of each channel."""
    drawn = random.standard_normal(image.shape, dtype=np.float32)
    return image + np.float32(0.1 + 1.4 * strength) * _deviation(image) * drawn, labels


def bias_field(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """A smooth factor, as of a coil: its logarithm runs to up to 1.5 from its mean."""
    from scipy.ndimage import zoom

    nodes = random.uniform(-1, 1, (SMOOTH_CELLS,) * 3)
    factors = [edge / SMOOTH_CELLS for edge in labels.shape]
    field = zoom(nodes, factors, order=1, mode="nearest", grid_mode=True)
    low = image.min(axis=(1, 2, 3), keepdims=True)
    return (image - low) * np.exp((0.2 + 1.3 * strength) * field).astype(np.float32) + low, labels


def blur(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """A Gaussian of up to three voxels in the planes (the axes that are sharpest)."""
    from scipy.ndimage import gaussian_filter

    sigma = 0.5 + 2.5 * strength
    return np.stack([gaussian_filter(channel, (0, sigma, sigma)) for channel in image]), labels


def resolution(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """Thick slices along a drawn axis: means of up to six voxels."""
    axis, width = 1 + int(random.integers(3)), 2 + round(4 * strength)
    moved = np.moveaxis(image, axis, 1).copy()
    for start in range(0, moved.shape[1], width):
        moved[:, start : start + width] = moved[:, start : start + width].mean(axis=1, keepdims=True)
    return np.ascontiguousarray(np.moveaxis(moved, 1, axis)), labels


def gamma(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """Intensities from lowest to highest to a power of 1.3 to 4, or its inverse."""
    low, high = (edge(axis=(1, 2, 3), keepdims=True) for edge in (image.min, image.max))
    power = (1.3 + 2.7 * strength) ** (1 if random.random() < 0.5 else -1)
    return (((image - low) / np.maximum(high - low, 1e-6)) ** power * (high - low) + low).astype(np.float32), labels


def missing_slices(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """Up to half of the planes of a drawn axis hold the lowest value."""
    axis = 1 + int(random.integers(3)) if image.shape[1] > 1 else 2
    count = image.shape[axis]
    chosen = random.permutation(count)[: max(1, round((0.1 + 0.4 * strength) * count))]
    moved = np.moveaxis(image.copy(), axis, 1)
    moved[:, chosen] = image.min(axis=(1, 2, 3))[:, None, None, None]
    return np.ascontiguousarray(np.moveaxis(moved, 1, axis)), labels


def cropped(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """A field of view without up to half of the image, along a drawn axis at a drawn end."""
    axis = int(random.integers(3)) if image.shape[1] > 1 else 1 + int(random.integers(2))
    extent = labels.shape[axis]
    kept = max(1, round((0.9 - 0.4 * strength) * extent))
    where = [slice(None)] * 3
    where[axis] = slice(0, kept) if random.random() < 0.5 else slice(extent - kept, extent)
    return image[(slice(None), *where)].copy(), labels[tuple(where)].copy()


def orientation(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """A header that lies: axes reversed, and from half of the strength on two of them exchanged."""
    axes = [axis for axis in range(3) if labels.shape[axis] > 1]
    turned = [axis for axis in axes if random.random() < 0.5] or [axes[int(random.integers(len(axes)))]]
    image, labels = np.flip(image, tuple(1 + axis for axis in turned)), np.flip(labels, tuple(turned))
    if strength >= 0.5 and len(axes) > 1:
        first, second = axes[-2:]
        image, labels = image.swapaxes(1 + first, 1 + second), labels.swapaxes(first, second)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def swapped_channels(
    image: Image, labels: Labels, strength: float, random: np.random.Generator
) -> tuple[Image, Labels]:
    """Channels in another order; an image of one is inverted instead."""
    if len(image) == 1:
        return image.max() + image.min() - image, labels
    order = random.permutation(len(image))
    return image[np.roll(order, 1)[np.argsort(order)]].copy(), labels


def motion(image: Image, labels: Labels, strength: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """Lines of k-space from up to four positions of a patient who moves by up to a tenth of the image."""
    axes = (2, 3)
    spectrum = np.fft.fft2(image, axes=axes)
    lines = image.shape[axes[0]]
    for _ in range(1 + round(3 * strength)):
        shift = [round(float(random.uniform(-0.1, 0.1)) * (0.3 + 0.7 * strength) * image.shape[axis]) for axis in axes]
        start = int(random.integers(lines))
        taken = np.arange(start, start + max(1, round(0.25 * lines))) % lines
        spectrum[:, :, taken] = np.fft.fft2(np.roll(image, shift, axes), axes=axes)[:, :, taken]
    return np.fft.ifft2(spectrum, axes=axes).real.astype(np.float32), labels


HARMS: dict[str, Harm] = {
    "noise": noise,
    "bias field": bias_field,
    "blur": blur,
    "resolution": resolution,
    "gamma": gamma,
    "missing slices": missing_slices,
    "cropped field of view": cropped,
    "orientation": orientation,
    "swapped channels": swapped_channels,
    "motion": motion,
}


def harmed(
    image: Image, labels: Labels, kind: str, strength: float, random: np.random.Generator, schemes: Sequence[str]
) -> tuple[Image, Labels]:
    """A harmed copy; each channel is then normalised as its scheme would have done it."""
    inside = image != 0
    changed, truth = HARMS[kind](image, labels, strength, random)
    changed = np.array(changed, np.float32)
    for number, (channel, scheme) in enumerate(zip(changed, schemes, strict=True)):
        if scheme == "zscore":
            marked = inside[number]
            part = channel[marked] if marked.shape == channel.shape and marked.any() else channel
            channel -= part.mean(dtype=np.float64).astype(np.float32)
            channel /= max(float(part.std(dtype=np.float64)), 1e-6)
        elif scheme != "none":
            np.clip(channel, image[number].min(), image[number].max(), out=channel)
    return changed, truth


def _deviation(image: Image) -> NDArray[np.float32]:
    return image.std(axis=(1, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
