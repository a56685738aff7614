"""The record of one predicted case, as it stands in reports/<case>.json and report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from medmamba.geometry import Grid
from medmamba.inference.quality import Finding

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Geometry:
    """The grid of an image: shape (i, j, k), spacing, axes such as "RAS", and the hash of its affine."""

    shape: Sequence[int]
    spacing_mm: Sequence[float] | None
    orientation: str | None
    affine_sha256: str | None

    @classmethod
    def of(cls, grid: Grid) -> Geometry:
        """The facts of a grid."""
        spacing = None if grid.spacing_mm is None else [round(mm, 6) for mm in grid.spacing_mm]
        affine = None if grid.affine is None else sha256(grid.affine.tobytes()).hexdigest()
        return cls(list(grid.shape), spacing, grid.orientation, affine)


@dataclass(frozen=True)
class CaseRecord:
    """What became of a case.

    Attributes:
        case: its name, or pseudonym.
        request: hash of everything that decides a mask besides the image.
        status: ok, review, or failed; then ``reason`` says why, and all below it is missing.
        findings: what is unusual about image or mask.
        volume_ml: by label; None without millimetres.
        empty: whether no label has a voxel.
        entropy, fold_agreement: of :class:`~medmamba.Prediction`.
        seconds: by stage.
        mask: name of its file; None under a pseudonym.
        input_sha256, mask_sha256: of the files; image_sha256: of voxels and grid.
    """

    case: str
    request: str
    status: str
    reason: str = ""
    input_sha256: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    voxels: Mapping[str, int] | None = None
    volume_ml: Mapping[str, float | None] | None = None
    empty: bool = False
    entropy: float | None = None
    fold_agreement: float | None = None
    seconds: Mapping[str, float] | None = None
    mask: str | None = None
    mask_sha256: Sequence[str] = ()
    image_sha256: str | None = None
    geometry: Geometry | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no mask."""
        return self.status == "failed"

    def as_dict(self) -> dict[str, Any]:
        """As JSON; of a failed case the reason alone, of others everything else."""
        numbers = asdict(self)
        shown = ("case", "request", "status", "reason") if self.failed else [key for key in numbers if key != "reason"]
        return {"schema_version": SCHEMA_VERSION, **{key: numbers[key] for key in shown}}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> CaseRecord:
        """The record that :meth:`as_dict` wrote. Raises KeyError or TypeError for anything else."""
        if numbers["schema_version"] != SCHEMA_VERSION:
            raise KeyError(f"schema {numbers['schema_version']}")
        known = {key: value for key, value in numbers.items() if key in {entry.name for entry in fields(cls)}}
        known["findings"] = tuple(Finding(**finding) for finding in numbers.get("findings", ()))
        if known.get("geometry"):
            known["geometry"] = Geometry(**known["geometry"])
        return cls(**known)
