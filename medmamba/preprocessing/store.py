"""Preprocessed cases on disk: one folder per case, arrays in compressed chunks that are read by patch.

    <case>/image.b2nd     float32 (C, I, J, K)
    <case>/labels.b2nd    int16 (I, J, K), the plan's label order (0 = background)
    <case>/locations.safetensors   per label an (n, 3) int16/int32 table of voxel coordinates
    <case>/case.json      schema, case id, shape

The folder is renamed into place when it is complete, so a case is either whole or absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import blosc2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from medmamba.atomic import replace_folder
from medmamba.errors import InputError

SCHEMA_VERSION = 1
MAX_LOCATIONS = 10_000
"""Voxel coordinates kept per label and case: enough to sample patches uniformly, small on disk (nnU-Net's figure)."""


def write_case(
    folder: Path,
    case_id: str,
    image: NDArray[np.float32],
    labels: NDArray[np.integer],
    *,
    chunk: tuple[int, ...],
    seed: int = 0,
) -> None:
    """Store one preprocessed case in ``folder``; ``chunk`` is the patch size, so that a patch touches few chunks."""
    chunks = tuple(min(edge, extent) for edge, extent in zip(chunk, labels.shape, strict=True))
    with replace_folder(folder) as part:
        image = np.ascontiguousarray(image, dtype=np.float32)
        (part / "image.b2nd").write_bytes(_compressed(image, (len(image), *chunks)))
        (part / "labels.b2nd").write_bytes(_compressed(np.ascontiguousarray(labels, dtype=np.int16), chunks))
        (part / "locations.safetensors").write_bytes(save(_sample_locations(labels, seed)))
        facts = {"schema_version": SCHEMA_VERSION, "case_id": case_id, "shape": list(labels.shape)}
        (part / "case.json").write_text(json.dumps(facts) + "\n")


class CaseReader:
    """One stored case, opened on first use and read by patch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            facts = json.loads((folder / "case.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: not a preprocessed case ({error}). Run `medmamba plan` again.") from error
        if facts["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{folder}: written with storage schema {facts['schema_version']}, this version reads "
                f"{SCHEMA_VERSION}. Run `medmamba plan` again."
            )
        self.case_id: str = facts["case_id"]
        self.shape: tuple[int, ...] = tuple(facts["shape"])

    @cached_property
    def locations(self) -> Mapping[int, NDArray[np.integer]]:
        """For each foreground label, an (n, 3) table of voxels that carry it."""
        return {int(label): voxels for label, voxels in load_file(self.folder / "locations.safetensors").items()}

    @cached_property
    def _image(self) -> blosc2.NDArray:
        return blosc2.open(str(self.folder / "image.b2nd"), mode="r")

    @cached_property
    def _labels(self) -> blosc2.NDArray:
        return blosc2.open(str(self.folder / "labels.b2nd"), mode="r")

    def read_whole(self) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """The whole image (C, I, J, K) and label map (I, J, K)."""
        return self._image[:], self._labels[:]

    def read_patch(
        self, start: tuple[int, ...], size: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Image (C, *size) and labels (1, *size) from voxel ``start``; outside the volume both are 0."""
        inside: list[slice] = []
        target: list[slice] = []
        for first, edge, extent in zip(start, size, self.shape, strict=True):
            low, high = max(first, 0), min(first + edge, extent)
            inside.append(slice(low, max(high, low)))
            target.append(slice(low - first, max(high, low) - first))
        image = np.zeros((self._image.shape[0], *size), np.float32)
        labels = np.zeros((1, *size), np.int16)
        image[(slice(None), *target)] = self._image[(slice(None), *inside)]
        labels[0][tuple(target)] = self._labels[tuple(inside)]
        return image, labels


def stored_cases(folder: Path) -> dict[str, CaseReader]:
    """All complete cases of a preprocessing folder, by case id, sorted."""
    readers = [CaseReader(path.parent) for path in sorted(folder.glob("*/case.json"))]
    return {reader.case_id: reader for reader in readers}


def _compressed(array: NDArray, chunks: tuple[int, ...]) -> bytes:
    # Made in memory and written by Python: blosc2's own file writer does not say that a disk is full.
    codec = {"codec": blosc2.Codec.ZSTD, "clevel": 5}
    return blosc2.asarray(array, chunks=chunks, cparams=codec).to_cframe()


def _sample_locations(labels: NDArray[np.integer], seed: int) -> dict[str, NDArray[np.integer]]:
    rng = np.random.default_rng(seed)
    kind = np.int16 if max(labels.shape) < 2**15 else np.int32
    locations = {}
    for label in np.unique(labels[labels > 0]):
        voxels = np.argwhere(labels == label)
        if len(voxels) > MAX_LOCATIONS:
            voxels = voxels[np.sort(rng.choice(len(voxels), MAX_LOCATIONS, replace=False))]
        locations[str(int(label))] = np.ascontiguousarray(voxels.astype(kind))
    return locations
