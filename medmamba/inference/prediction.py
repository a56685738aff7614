"""What a prediction gives back: the mask, what is known about it, and ways to write it down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import InputError, MedmambaError
from medmamba.geometry import Grid
from medmamba.images import MedicalImage, write_label_map
from medmamba.inference.provenance import Provenance
from medmamba.inference.quality import Finding, status_of


@dataclass(frozen=True, eq=False)
class Prediction:
    """A mask on the image's own grid, and how far it can be trusted.

    Attributes:
        labels: (i, j, k), the dataset's label values.
        grid: shape and affine (RAS+ mm) of the image.
        volumes_ml: by label; None for images without millimetres.
        voxels: count by label.
        findings: what is unusual about image or mask; :attr:`status` is the most serious of them.
        entropy: mean entropy of the foreground as a fraction of the largest possible; None if not measured.
        agreement: Dice of the least agreeing fold with the mean of all; None for one fold.
        seconds: by stage.
        probabilities: float32 (classes, i, j, k) if asked for.
        like: the image, as it was read.
        provenance: what made the mask; None for one that no predictor made.
    """

    labels: NDArray[Any]
    grid: Grid
    volumes_ml: dict[str, float | None]
    voxels: dict[str, int]
    findings: tuple[Finding, ...] = ()
    entropy: float | None = None
    agreement: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    probabilities: NDArray[np.float32] | None = None
    like: MedicalImage | None = None
    provenance: Provenance | None = None

    @property
    def status(self) -> str:
        """``ok``, ``review`` or ``reject``."""
        return status_of(self.findings)

    def save(self, path: str | Path) -> None:
        """Write the mask on the image's own grid, in the kind of file that the ending asks for."""
        write_label_map(path, self.labels, like=self.grid if self.like is None else self.like)

    def save_dicom_seg(
        self, path: str | Path, *, series: str | Path | None = None, codes: str | Path | None = None
    ) -> None:
        """Write the mask as DICOM SEG beside its series, and read it back.

        Args:
            series: folder of the DICOM series; the one that was predicted if left out.
            codes: labels.json with code and colour of each label.

        Raises InputError when the image did not come from a DICOM series, or the mask is empty.
        """
        from medmamba.dicom.segmentation import write_segmentation

        self._save_beside_series(write_segmentation, path, series, codes)

    def save_dicom_rtstruct(
        self, path: str | Path, *, series: str | Path | None = None, codes: str | Path | None = None
    ) -> None:
        """Write the mask as contours (DICOM RTSTRUCT) of its series, and read it back; as :meth:`save_dicom_seg`."""
        from medmamba.dicom.contours import write_contours

        self._save_beside_series(write_contours, path, series, codes)

    def _save_beside_series(
        self, write: Callable[..., None], path: str | Path, series: str | Path | None, codes: str | Path | None
    ) -> None:
        from medmamba.dicom.codes import read_codes

        source = series if series is not None else (None if self.like is None else self.like.path)
        if source is None or not Path(source).exists():
            raise InputError(
                "A DICOM segmentation refers to the series it was made from. Predict the folder of a series, or name "
                "it with series=FOLDER."
            )
        if self.provenance is None:
            raise InputError("A DICOM object names its labels. Give the prediction a provenance.")
        names = self.provenance.labels
        write(path, self.labels, self.grid, source, names, read_codes(codes, list(names)))

    def record(self) -> dict[str, Any]:
        """Everything but the voxels, as JSON; no name of a case, patient or file."""
        return {
            "status": self.status,
            "findings": [asdict(finding) for finding in self.findings],
            "voxels": self.voxels,
            "volume_ml": self.volumes_ml,
            "empty": not any(self.voxels.values()),
            "entropy": self.entropy,
            "fold_agreement": self.agreement,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    def report(self) -> dict[str, Any]:
        """:meth:`record` with the provenance as ``model``."""
        return {**self.record(), "model": None if self.provenance is None else self.provenance.as_dict()}

    def save_report(self, path: str | Path) -> None:
        """Write :meth:`report` as .json, or as one .html page that shows the mask."""
        path = Path(path)
        if path.suffix == ".json":
            write_json(path, self.report())
        elif path.suffix == ".html":
            from medmamba.inference.report_page import prediction_page

            write_text(path, prediction_page(self))
        else:
            raise InputError(f"{path}: a report is .json or .html. Choose one of the two endings.")


@dataclass(frozen=True)
class FailedPrediction:
    """A case of :meth:`medmamba.Predictor.predict_many` that could not be predicted, and why."""

    case: str
    reason: str
    error: MedmambaError | FloatingPointError | MemoryError

    status = "failed"


def shown_case(image: Any) -> str:
    """How a case of several is called: its file name, else its type."""
    first = image[0] if isinstance(image, Sequence) and not isinstance(image, str) and len(image) else image
    return Path(first).name if isinstance(first, str | Path) else type(image).__name__
