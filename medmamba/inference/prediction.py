"""The result of a prediction: the mask with its volumes, warnings and provenance, and methods to write it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import InputError, MedmambaError
from medmamba.geometry import Grid
from medmamba.images import MedicalImage, write_label_map
from medmamba.inference.expected import ExpectedQuality, remarks_of
from medmamba.inference.finding import Finding, status_of


@dataclass(frozen=True)
class PredictionSettings:
    """Choices that decide a mask, besides the weights and the image.

    Folds are names of folders, by configuration as the patch sizes are; ``step`` is a fraction of the patch edge, and
    ``scan_backend`` the one that ran, "none" for a network without scans.
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
    reading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Provenance of a mask: versions, plan, weights (by configuration and fold), settings, device, values of labels.

    ``recipe_sha256`` is that of the best.json of `medmamba find-best`; None without one. ``warnings`` are about the
    choice of the model, such as missing folds. ``others`` are further models that were averaged with this one.
    ``ignore`` is the label value of voxels that were not to be learned. ``expectations_sha256`` is that of what
    find-best learned about masks; None where it does not hold for this model.
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
    region_order: Sequence[str] | None = None
    warnings: Sequence[str] = ()
    others: Sequence["Provenance"] = ()
    ignore: int | None = None
    expectations_sha256: str | None = None

    def __getitem__(self, key: str) -> Any:
        """``provenance["plan_sha256"]``: an entry of :meth:`as_dict`, as the provenance was in version 0.1."""
        return self.as_dict()[key]

    def as_dict(self) -> dict[str, Any]:
        """As it stands in report.json."""
        numbers = asdict(replace(self, others=()))
        warnings = numbers.pop("warnings")
        del numbers["others"]
        for name in ("region_order", "expectations_sha256"):
            if numbers[name] is None:
                del numbers[name]
        joined = {"others": [other.as_dict() for other in self.others]} if self.others else {}
        return {**numbers, "remarks": warnings, **joined}

    def sentence(self) -> str:
        """Device, precision and scan backend, for people."""
        return f"device {self.device}, precision {self.settings.precision}, scan backend {self.settings.scan_backend}"


@dataclass(frozen=True, eq=False)
class Prediction:
    """A mask on the image's own grid, and how far it can be trusted.

    Attributes:
        labels: (i, j, k), the dataset's label values.
        grid: shape and affine (RAS+ mm) of the image.
        volumes_ml: by label; None for images without millimetres.
        findings: what is unusual about image or mask; :attr:`status` is the most serious of them.
        entropy: mean entropy of the foreground as a fraction of the largest possible; None if not measured.
        agreement: Dice of the least agreeing fold with the mean of all; None for one fold.
        expected: what `medmamba find-best` learned to expect of each structure's mask, without truth.
        not_learned: structures of which nothing is expected, and why; "" stands for all of them.
        probabilities: float32 (classes, i, j, k) if asked for.
        uncertainty: uint8 (i, j, k) if asked for, the chance of error of each voxel in percent; without what
            `medmamba find-best` learns, 100 times 1 minus the largest probability.
        like: the image, as it was read.
        provenance: None for a mask that no predictor made.
    """

    labels: NDArray[Any]
    grid: Grid
    volumes_ml: dict[str, float | None]
    voxels: dict[str, int]
    findings: tuple[Finding, ...] = ()
    entropy: float | None = None
    agreement: float | None = None
    expected: Mapping[str, ExpectedQuality] = field(default_factory=dict)
    not_learned: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    probabilities: NDArray[np.float32] | None = None
    uncertainty: NDArray[np.uint8] | None = None
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
        """Write the mask as DICOM SEG beside its series (default: the one that was predicted), and read it back.

        What is expected of a segment is its description.

        ``codes`` is a labels.json with code and colour of each label. Raises InputError when the image did not come
        from a DICOM series.
        """
        from medmamba.dicom.segmentation import write_segmentation

        write = partial(write_segmentation, remarks=remarks_of(self.expected))
        self._save_beside_series(write, path, series, codes)

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
            "expected": {name: quality.as_dict() for name, quality in self.expected.items()},
            "not_learned": dict(self.not_learned),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    def report(self) -> dict[str, Any]:
        """:meth:`record` with the provenance as ``model``."""
        return {**self.record(), "model": None if self.provenance is None else self.provenance.as_dict()}

    def save_report(self, path: str | Path, *, not_written: Mapping[str, str] | None = None) -> None:
        """Write :meth:`report` as .json, or as one .html page that shows the mask and names no case or patient.

        ``not_written`` names what could not be made from the mask ("dicom_seg"), with the reason; both show it.
        """
        path, lacking = Path(path), dict(not_written or {})
        if path.suffix == ".json":
            write_json(path, {**self.report(), "not_written": lacking})
            return
        if path.suffix != ".html":
            raise InputError(f"{path}: a report is .json or .html. Choose one of the two endings.")
        from medmamba.geometry.display import Display
        from medmamba.pages.picture import draw_case
        from medmamba.pages.render import render

        model = self.provenance
        values = [] if model is None else [value for value in model.labels.values() if value]
        image = None if self.like is None else self.like.array
        volumes = {name: "–" if ml is None else f"{ml:.3f}" for name, ml in self.volumes_ml.items()}
        page = render(
            "prediction.html",
            prediction=self,
            not_written=lacking,
            disclaimer="For research. Not a medical device: whoever uses this mask for a patient must check it.",
            picture=draw_case(Display(self.grid), values, coloured=self.labels, image=image),
            rows=[[name, volumes[name], count] for name, count in self.voxels.items()],
            made_by="" if model is None else json.dumps(model.as_dict(), indent=1),
        )
        write_text(path, page)


@dataclass(frozen=True)
class FailedPrediction:
    """A case of :meth:`medmamba.Predictor.predict_many` that could not be predicted, and why."""

    case: str
    reason: str
    error: MedmambaError | FloatingPointError | MemoryError

    status = "failed"
