"""Calibration of voxels: whether labels are wrong as often as stored maps of uncertainty, or probabilities, say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.errors import MedmambaError
from medmamba.geometry import grid_difference
from medmamba.images import LabelMap, ReadOptions, read_image, read_label_map
from medmamba.images.cases import PROBABILITIES, UNCERTAINTY

BINS = 10
"""Groups of equal width by chance of error."""
MOST_BYTES = 2**31
"""Larger probabilities are not read; a map of uncertainty takes a byte a voxel."""


@dataclass(frozen=True)
class VoxelScores:
    """Scores of the chance of error of voxels.

    Attributes:
        voxels: how many.
        ece: expected calibration error, the mean difference of chance and frequency of errors over groups of voxels.
        brier: mean square of the difference of chance and error (0 or 1).
        mean_chance, errors: mean chance, and fraction of voxels whose label is wrong.
        reliability: groups by chance of error: number of voxels, mean chance, fraction of errors.
    """

    voxels: int
    ece: float
    brier: float
    mean_chance: float
    errors: float
    reliability: list[tuple[int, float, float]]

    def as_dict(self) -> dict[str, Any]:
        """For strict JSON."""
        return {**vars(self), "reliability": [list(group) for group in self.reliability]}


@dataclass
class VoxelCalibration:
    """Counts voxels and errors by chance of error in percent, of maps beside the ``files`` of masks by name.

    A case with neither map nor probabilities is left out. Of the latter there are ``channels``, with 0 they are not
    used; ``sigmoid``: they are independent.
    """

    files: Mapping[str, Path]
    reading: ReadOptions
    channels: int = 0
    sigmoid: bool = False
    ignore: int | None = None
    cases: int = 0
    warnings: list[str] = field(default_factory=list)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 101), np.int64))
    """Number of voxels, and of errors, by percent."""

    def see(self, case_id: str, mask: LabelMap, truth: NDArray[Any]) -> None:
        """Count the voxels of one mask (i, j, k) and its truth on the same grid."""
        try:
            percent = self._percent(case_id, mask)
        except MedmambaError as error:
            self.warnings.append(f"{error} The calibration of its voxels was left out.")
            return
        if percent is None:
            return
        known = np.ones(truth.shape, bool) if self.ignore is None else truth != self.ignore
        wrong = known & (mask.array != truth)
        self.counts += [np.bincount(percent[here], minlength=101) for here in (known, wrong)]
        self.cases += 1

    def _percent(self, case_id: str, mask: LabelMap) -> NDArray[np.integer] | None:
        """The chance of error in percent (i, j, k); None, with a warning, where the file is none of this mask."""
        if (path := self.files.get(f"{case_id}{UNCERTAINTY}")) is not None:
            stored = read_label_map(path, self.reading)
            grid, percent = stored.grid, stored.array
        elif self.channels and (path := self.files.get(f"{case_id}{PROBABILITIES}")) is not None:
            if 4 * self.channels * mask.array.size > MOST_BYTES:
                cure = "predict with --uncertainty to calibrate voxels."
                self.warnings.append(f"{case_id}: {path.name} is too large to be read; {cure}")
                return None
            image = read_image(path, self.reading)
            p = image.array
            doubt = np.minimum(p, 1 - p).max(axis=0) if self.sigmoid else 1 - p.max(axis=0)
            grid, percent = image.grid, np.rint(100 * doubt).astype(np.int16)
        else:
            return None
        problem = grid_difference(mask.grid, grid)
        if not problem and not (percent.min() >= 0 and percent.max() <= 100):
            problem = "disagree: it holds values beyond 0 and 100 %"
        if problem:
            self.warnings.append(f"{case_id}: mask and {path.name} {problem}; left out of the calibration of voxels.")
            return None
        return percent

    def scores(self) -> dict[str, VoxelScores]:
        """Of all voxels, and of those whose chance is 1 % or more, as most of an image is sure; nothing without any.

        The truth chooses none of them: where it did, right chances would look wrong.
        """
        doubtful = self.counts * (np.arange(101) > 0)
        both = {"all voxels": self.counts, "voxels of 1 % and more": doubtful}
        return {name: _scores(*counts) for name, counts in both.items() if counts[0].any()}


def _scores(number: NDArray[np.int64], errors: NDArray[np.int64]) -> VoxelScores:
    chance, total = np.arange(101) / 100, int(number.sum())
    group = np.minimum(np.arange(101) * BINS // 100, BINS - 1)
    in_group, expected, wrong = (np.bincount(group, each, BINS) for each in (number, number * chance, errors))
    used = in_group > 0
    means = [part[used] / in_group[used] for part in (expected, wrong)]
    return VoxelScores(
        voxels=total,
        ece=float(np.abs(expected - wrong).sum() / total),
        brier=float((number * chance**2 + errors * (1 - 2 * chance)).sum() / total),
        mean_chance=float(expected.sum() / total),
        errors=float(wrong.sum() / total),
        reliability=[
            (int(count), float(said), float(true)) for count, said, true in zip(in_group[used], *means, strict=True)
        ],
    )
