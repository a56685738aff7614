"""What made a mask: versions, model, settings and device, enough to make the same bytes again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class PredictionSettings:
    """Choices that decide a mask, besides the weights and the image.

    Attributes:
        configuration: names of the configurations that were averaged.
        folds: folders of the trained folds, by configuration.
        mirror: whether flips were averaged.
        step: distance of neighbouring patches, as a fraction of the patch edge.
        patch_size: edges in voxels, by configuration.
        tile_batch: patches that went through the network together.
        precision: fp32, bf16 or fp16.
        scan_backend: implementation of the scan that ran; "none" for a network without scans.
        threads: of torch on the CPU.
    """

    configuration: Sequence[str]
    folds: Mapping[str, Sequence[str]]
    mirror: bool
    fast: bool
    step: float
    patch_size: Mapping[str, Sequence[int]]
    tile_batch: int
    precision: str
    scan_backend: str
    threads: int


@dataclass(frozen=True)
class Provenance:
    """What made a mask.

    Attributes:
        medmamba, torch: versions.
        weights_sha256: by configuration and fold.
        recipe_sha256: of the best.json of `medmamba find-best`; None without one.
        labels: value of each label in the masks.
        regions: labels that each region joins.
        warnings: about the choice of the model, such as missing folds.
    """

    medmamba: str
    torch: str
    dataset: str
    plan_sha256: str
    weights_sha256: Mapping[str, Mapping[str, str]]
    settings: PredictionSettings
    recipe_sha256: str | None
    device: str
    labels: Mapping[str, int]
    regions: Mapping[str, Sequence[str]] | None = None
    warnings: Sequence[str] = field(default=())

    def __getitem__(self, key: str) -> Any:
        """``provenance["plan_sha256"]``: an entry of :meth:`as_dict`, as the provenance was in version 0.1."""
        return self.as_dict()[key]

    def as_dict(self) -> dict[str, Any]:
        """As it stands in report.json."""
        numbers = asdict(self)
        warnings = numbers.pop("warnings")
        return {**numbers, "remarks": warnings}

    def sentence(self) -> str:
        """Device, precision and scan backend, for people."""
        settings = self.settings
        return f"device {self.device}, precision {settings.precision}, scan backend {settings.scan_backend}"
