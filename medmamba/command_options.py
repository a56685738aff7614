"""Options of the commands that have few: demo, explain, info, find-best, report, reproduce, serve, dicom-seg, convert.

Those of plan, train, pretrain, predict, evaluate and export stand in their packages.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from medmamba.inference.options import MIRROR_TEXT, NO_MIRROR_TEXT, ModelOptions, PredictorOptions
from medmamba.options import (
    DEVICE_TEXT,
    OVERWRITE_TEXT,
    SCAN_BACKEND_TEXT,
    Names,
    Options,
    ScanBackend,
    option,
    value_text,
)
from medmamba.plans.options import ReadingOptions

DEMO_MINUTES = 8.0


class DemoOptions(Options):
    """The choices of :func:`medmamba.demo.run_demo`."""

    output: Path = option(Path("demo"), "Output folder.", flag="--output -o")
    data: Path | None = option(None, "Dataset folder. Default: the hippocampus data that is part of the package.")
    minutes: float = option(DEMO_MINUTES, "Training time in minutes.", ge=0.01)
    steps: int | None = option(None, "Largest number of training steps.", ge=1)
    test_cases: int | None = option(None, "Predict only the first N test cases.", ge=1)
    network: str = option("vm_unet", "Network.")
    use_scan: bool = option(True, "Train the same network without its scans.", flag="--no-scan")
    overwrite: bool = option(False, OVERWRITE_TEXT)


class ExplainOptions(Options):
    """The choices of `medmamba explain`."""

    what_if: str | None = option(
        None, 'Options of `medmamba plan`; prints what they would change: "--device-memory 6GB".'
    )


class InfoOptions(Options):
    """The choices of :func:`medmamba.models.network.describe_network`."""

    dims: int = option(3, "Spatial dimensions: 2 or 3.", ge=2, le=3)
    size: int = option(64, "Edge of the patch in voxels, a multiple of 8.", ge=16, le=1024)


class DoctorOptions(Options):
    """The choices of `medmamba doctor`."""

    gpu: bool = option(
        False, "Check a GPU: driver, compiler, every kernel once against float64, times of a few operations."
    )
    device: str = option("cuda", "GPU to check: cuda or cuda:N.")


class FindBestOptions(Options):
    """The choices of :func:`medmamba.model_selection.run.find_best`."""

    device: str = option("auto", DEVICE_TEXT)
    mirror: bool = option(True, NO_MIRROR_TEXT, flag="--no-mirror")
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT)
    scratch: Path | None = option(
        None, "Folder for temporary probabilities of regions. Default: the system's temporary folder."
    )
    expectations: bool = option(
        True,
        "Learn nothing about the quality of masks without truth, which predicts every case three to ten times more.",
        flag="--no-expectations",
    )
    overwrite: bool = option(False, OVERWRITE_TEXT)


class ReportOptions(Options):
    """The choices of :func:`medmamba.run_report.write.write_report`."""

    cases: int | None = option(None, "Largest number of validation cases per fold. Default: all.", ge=1)
    device: str = option("auto", DEVICE_TEXT)
    mirror: bool = option(False, MIRROR_TEXT)
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT)
    overwrite: bool = option(False, OVERWRITE_TEXT)


class ReproduceOptions(Options):
    """The choices of :func:`medmamba.inference.folder.run.reproduce`."""

    cases: Names | None = option(None, "Case to reproduce; repeat for several. Default: all.", flag="--case")
    device: str = option("auto", DEVICE_TEXT)


def _label_values(value: Any) -> Any:
    """``["liver=1", "spleen=2"]`` as a table that also has the background."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = [f"{name}={number}" for name, number in value.items() if (name, number) != ("background", 0)]
    table = {"background": 0}
    for text in value if isinstance(value, list | tuple) else [value]:
        name, _, number = str(text).rpartition("=")
        if not name or not number.isdecimal() or int(number) == 0:
            raise ValueError(
                f"has the part {value_text(text)}, which is not NAME=VALUE with a value above 0. Write liver=1."
            )
        table[name] = int(number)
    return table


class DicomSegOptions(Options):
    """The choices of :func:`medmamba.dicom.segmentation.mask_to_segmentation`."""

    codes: Path | None = option(None, "JSON file with the code and colour of each label.")
    overwrite: bool = option(False, OVERWRITE_TEXT)
    choice: str | None = option(None, "Series: number or UID, and part (3:1, 3:largest); ? lists.", flag="--series")
    labels: Annotated[dict[str, int], BeforeValidator(_label_values)] | None = option(
        None, "Value of a label as NAME=VALUE; repeat for several. Default: from report.json.", flag="--label"
    )


class ConvertDatasetOptions(ReadingOptions):
    """The choices of :func:`medmamba.datasets.convert_dataset`."""

    layout: Literal["nnunet", "decathlon"] = option("nnunet", "Layout: nnU-Net raw, or Medical Segmentation Decathlon.")


class ConvertPlansOptions(Options):
    """The choices of :func:`medmamba.planning.convert.convert_plan`."""

    dataset: Path | None = option(None, "nnU-Net's dataset.json. Default: the one in the folder of the plans file.")
    overwrite: bool = option(False, OVERWRITE_TEXT)


class ConvertModelOptions(Options):
    """The choices of :func:`medmamba.nnunet.convert.convert_model`."""

    which: str | None = option(
        None, "TRAINER__PLANS of the models, where the folder holds those of several trainings.", flag="--model"
    )
    checkpoint: Literal["final", "best"] = option("final", "Checkpoint of each fold: final, or best.")


class ConvertWeightsOptions(Options):
    """The choices of :func:`medmamba.networks.published.weights.convert_weights`."""

    family: Literal["vm_unet", "vmamba_v0", "mhs_vm", "hrvmamba", "vim", "mambaout"] = option(
        ..., "Published network of the checkpoint; `train --init` takes vm_unet and vmamba_v0."
    )
    overwrite: bool = option(False, OVERWRITE_TEXT)


class ServeOptions(ModelOptions):
    """The choices of :func:`medmamba.serving.app.run_service`."""

    host: str = option(
        "127.0.0.1", "Address to listen on. There is no authentication: do not expose it.", panel="Service"
    )
    port: int = option(8000, "Port; 0 takes a free one.", panel="Service", ge=0, le=65535)
    devices: Names = option(
        ("auto",),
        f"{DEVICE_TEXT.rstrip('.')}; repeat for several, each with its own queue.",
        panel="Service",
        flag="--device",
    )
    upload_mb: int = option(512, "Largest upload, in MB.", panel="Service", flag="--max-upload", ge=1)
    waiting: int = option(
        8, "Largest number of images that wait in the queue of a device.", panel="Service", flag="--max-waiting", ge=1
    )
    codes: Path | None = option(None, "JSON file with the code and colour of each label, for DICOM.", panel="Service")
    memory_limit_gib: float | None = option(
        None, "Largest memory in GiB of one image; others are refused.", panel="Service", flag="--max-memory", ge=0
    )

    def of_predictor(self, device: str) -> PredictorOptions:
        """The options of the predictor on one of the devices."""
        shared = {name: getattr(self, name) for name in (*ModelOptions.model_fields, "memory_limit_gib")}
        return PredictorOptions(device=device, **shared)
