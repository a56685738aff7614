"""The options of prediction: how a model predicts one image, and what `medmamba predict` does with many."""

from __future__ import annotations

from pathlib import Path

from medmamba.inference.patch_positions import FAST_STEP, STEP
from medmamba.options import (
    DEVICE_TEXT,
    SCAN_BACKEND_TEXT,
    Folds,
    Integers,
    Names,
    Options,
    Part,
    Precision,
    ScanBackend,
    listed,
    option,
)

BUDGET_GIB = 6.0
"""Memory that the arrays of one prediction may take together, so that a machine of 8 GiB has some left for the network;
planes that do not fit are kept on disk."""

PASSES_TEXT = "2^n passes of each patch through the network instead of one, n being the axes that the plan may mirror."
NO_MIRROR_TEXT = f"No average over flips, which takes {PASSES_TEXT}"
MIRROR_TEXT = f"Average over flips, which takes {PASSES_TEXT}"


class ModelOptions(Options):
    """How the networks of a model run; the same for predict and serve."""

    folds: Folds | None = option(
        None, "Fold to use; repeat for several. Default: all that are trained.", panel="Model", flag="--fold"
    )
    mirror: bool | None = option(None, NO_MIRROR_TEXT, panel="Speed", flag="--no-mirror")
    fast: bool = option(
        False,
        f"No mirroring, and patches {FAST_STEP:g} of their edge apart instead of {STEP:g}.",
        panel="Speed",
    )
    precision: Precision = option(
        "fp32",
        f"Precision of the network: {listed(Precision)}; auto: what the device multiplies fastest. Scans are always "
        "fp32; half precision moves single voxels at the borders of a mask.",
        panel="Speed",
    )
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT, panel="Speed")


class PredictorOptions(ModelOptions):
    """The choices of :class:`medmamba.Predictor`.

    ``configuration`` may be one name; ``patch_size`` and ``folds`` may be text, as on the command line.
    """

    configuration: Names | None = option(
        None,
        "Configuration; repeat for an ensemble whose probabilities are averaged. Default: what `medmamba find-best` "
        "chose for the run, else the plan's default.",
        panel="Model",
    )
    device: str = option("auto", DEVICE_TEXT, panel="Speed")
    patch_size: Integers | None = option(None, "Patch edges other than the plan's, as 96,96,96.", panel="Speed")
    tile_batch: int = option(1, "Patches that go through the network together.", panel="Speed", ge=1)
    confidence: bool = option(
        True, "Do not measure entropy and agreement of the folds.", panel="Speed", flag="--no-confidence"
    )
    scratch: Path | None = option(
        None, "Folder for what does not fit into memory. Default: the system's temporary folder.", panel="Memory"
    )
    memory_gib: float | None = option(
        None,
        "Memory in GiB to plan with: what does not fit goes to disk. Default: "
        f"{BUDGET_GIB:g}, or most of what is free if that is less.",
        panel="Memory",
        flag="--memory",
        ge=0,
    )
    memory_limit_gib: float | None = option(
        None,
        "Refuse an image that needs more memory in GiB than this, with its planes on disk too. Default: no limit.",
        panel="Memory",
        flag="--memory-limit",
        ge=0,
    )
    strict: bool = option(
        False, "Missing folds are an error, and so is a mask whose status is review.", panel="Quality control"
    )


class PredictOptions(PredictorOptions):
    """The choices of `medmamba predict` and :func:`medmamba.pipeline.predict`."""

    probabilities: bool = option(False, "Also write the probability of every class.", panel="Output")
    dicom_seg: bool = option(False, "Also write each mask as DICOM SEG beside its series' own objects.", panel="Output")
    dicom_rtstruct: bool = option(
        False, "Also write each mask as contours (DICOM RTSTRUCT) of its series.", panel="Output"
    )
    codes: Path | None = option(
        None, "labels.json with code and colour of each label of the DICOM objects.", panel="Output"
    )
    series: str | None = option(None, "Number or UID of the DICOM series, where a study holds several.", panel="Input")
    pseudonymise: bool = option(
        False, "No case names in reports and messages; the key is written to pseudonyms.csv.", panel="Output"
    )
    resume: bool = option(False, "Keep what an interrupted run has finished.", panel="Many cases")
    part: Part | None = option(None, "Predict only part i of n, as 2/4: for several machines.", panel="Many cases")
    workers: int = option(
        0,
        "Processes that divide the cases among them, each with its own model; 0: this process alone.",
        panel="Many cases",
        ge=0,
    )

    @property
    def dicom_kinds(self) -> tuple[str, ...]:
        """Kinds of DICOM objects to write: "seg", "rtstruct", both or none."""
        return ("seg",) * self.dicom_seg + ("rtstruct",) * self.dicom_rtstruct
