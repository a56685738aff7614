"""The options of prediction: how a model predicts one image, and what `medmamba predict` does with many."""

from pathlib import Path

from medmamba.inference.patch_positions import FAST_STEP, STEP
from medmamba.options import (
    DEVICE_TEXT,
    OVERWRITE_TEXT,
    SCAN_BACKEND_TEXT,
    Folds,
    Names,
    Options,
    Part,
    PatchSize,
    Precision,
    ScanBackend,
    listed,
    option,
)

BUDGET_GIB = 6.0
"""Memory that the arrays of one prediction may take together, so that a machine of 8 GiB has some left for the network;
planes that do not fit are kept on disk."""

PASSES_TEXT = "2^n passes per patch instead of one, for n axes that the plan allows to mirror."
NO_MIRROR_TEXT = f"No mirroring (test-time augmentation), which takes {PASSES_TEXT}"
MIRROR_TEXT = f"Mirroring (test-time augmentation), which takes {PASSES_TEXT}"


class ModelOptions(Options):
    """How the networks of a model run; the same for predict and serve."""

    folds: Folds | None = option(
        None, "Fold to use; repeat for several. Default: all that are trained.", panel="Model", flag="--fold"
    )
    mirror: bool | None = option(None, NO_MIRROR_TEXT, panel="Speed", flag="--no-mirror")
    fast: bool = option(
        False,
        f"No mirroring, and a step of {FAST_STEP:g} patch sizes between patches instead of {STEP:g}.",
        panel="Speed",
    )
    precision: Precision = option(
        "auto",
        f"Precision of the network: {listed(Precision)}; auto: half precision on a GPU, fp32 on a CPU. Scans are "
        "always computed in fp32. Half precision changes single voxels at the borders of a mask.",
        panel="Speed",
    )
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT, panel="Speed")
    accept_dice: float | None = option(
        None,
        "Dice that a mask should have: those whose expected Dice may be below it, or is not known, get the status "
        "review or reject. Needs what `medmamba find-best` learns.",
        panel="Quality control",
        ge=0,
        le=1,
    )
    risk: float = option(
        0.05,
        "Chance of a Dice below --accept-dice above which a mask is for review; reject where the chance of a Dice "
        "above it is no larger.",
        panel="Quality control",
        gt=0,
        lt=1,
    )


class PredictorOptions(ModelOptions):
    """The choices of :class:`medmamba.Predictor`."""

    configuration: Names | None = option(
        None,
        "Configuration; repeat for an ensemble (mean of the probabilities). Default: the choice of "
        "`medmamba find-best`, else the plan's default.",
        panel="Model",
    )
    device: str = option("auto", DEVICE_TEXT, panel="Speed")
    patch_size: PatchSize | None = option(None, "Patch size instead of the plan's: 96,96,96", panel="Speed")
    tile_batch: int | None = option(
        None,
        "Patches per forward pass. Default: 1, on a GPU as many as make 8 with their mirror images.",
        panel="Speed",
        ge=1,
    )
    confidence: bool = option(True, "Skip entropy and fold agreement.", panel="Speed", flag="--no-confidence")
    scratch: Path | None = option(
        None, "Folder for arrays that do not fit into memory. Default: the system's temporary folder.", panel="Memory"
    )
    memory_gib: float | None = option(
        None,
        "Memory in GiB for the arrays of a case; what does not fit is kept on disk. Default: "
        f"{BUDGET_GIB:g}, or most of the free memory if that is less.",
        panel="Memory",
        flag="--memory",
        ge=0,
    )
    memory_limit_gib: float | None = option(
        None,
        "Refuse images that need more memory in GiB than this, even with planes of logits on disk. Default: no limit.",
        panel="Memory",
        flag="--memory-limit",
        ge=0,
    )
    strict: bool = option(
        False, "Treat missing folds and masks with the status review as errors.", panel="Quality control"
    )


class PredictOptions(PredictorOptions):
    """The choices of `medmamba predict` and :func:`medmamba.predict`."""

    probabilities: bool = option(False, "Write the probabilities of all classes too.", panel="Output")
    uncertainty: bool = option(
        False, "Write the chance of error of every voxel, in percent, too: <case>_uncertainty.", panel="Output"
    )
    dicom_seg: bool = option(False, "Write each mask as DICOM SEG too.", panel="Output")
    dicom_rtstruct: bool = option(False, "Write each mask as contours (DICOM RTSTRUCT) too.", panel="Output")
    codes: Path | None = option(None, "JSON file with the code and colour of each label, for DICOM.", panel="Output")
    series: str | None = option(
        None, "DICOM series: number or UID, and part (3:1, 3:largest); ? lists all.", panel="Input"
    )
    pseudonymise: bool = option(
        False, "Replace case names in reports and messages by pseudonyms; pseudonyms.csv holds the key.", panel="Output"
    )
    overwrite: bool = option(False, OVERWRITE_TEXT, panel="Output")
    resume: bool = option(False, "Keep the masks that an interrupted run has finished.", panel="Many cases")
    part: Part | None = option(None, "Predict part i of n, such as 2/4, for several machines.", panel="Many cases")
    workers: int = option(
        0,
        "Processes among which the cases are divided, each with its own copy of the model; 0: none.",
        panel="Many cases",
        ge=0,
    )

    @property
    def dicom_kinds(self) -> tuple[str, ...]:
        """Kinds of DICOM objects to write: "seg", "rtstruct", both or none."""
        return ("seg",) * self.dicom_seg + ("rtstruct",) * self.dicom_rtstruct


class EnsembleOptions(Options):
    """The choices of :func:`medmamba.inference.folder.average.average_folders`."""

    probabilities: bool = option(False, "Write the mean probabilities too.")
    overwrite: bool = option(False, OVERWRITE_TEXT)
