"""A dataset of any layout rewritten as an nnU-Net v2 raw folder or a Medical Segmentation Decathlon folder.

Every case passes the same checks as before planning and is read once. The new folder appears as a whole when all of
it is written; when anything is wrong, all problems are reported and there is no folder. Headers keep their geometry and
lose names and free text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from medmamba.datasets.check import check_dataset
from medmamba.datasets.description import refuse
from medmamba.datasets.load import LoadedCase, load_case
from medmamba.datasets.read import read_dataset
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.datasets.table import patients_of
from medmamba.disk.atomic import replace_folder, write_json
from medmamba.errors import InputError
from medmamba.images import MedicalImage, ReadOptions, format_of, mask_ending, write_image, write_label_map
from medmamba.images.gate import shown
from medmamba.images.image import smallest_type
from medmamba.plans.folds import Fold, make_folds

Layout = Literal["nnunet", "decathlon"]


@dataclass(frozen=True)
class Conversion:
    """What was written, and warnings, one line each.

    ``values`` holds the new value of each old label value; nnU-Net needs 0, 1, 2, ... with the ignore value last.
    """

    folder: Path
    cases: int
    test_cases: int
    values: dict[int, int]
    warnings: tuple[str, ...]


def convert_dataset(
    dataset: DatasetSpec | Path | str,
    output: Path | str,
    layout: Layout,
    options: ReadOptions | None = None,
    *,
    workers: int | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Writes a dataset in another layout into a new folder.

    ``options`` say what is accepted; what is written needs none but those of spacing and size. nnU-Net has no key for
    patients, so a dataset that names them gets folds that keep each patient together.

    Raises InputError when the output exists or the layout cannot express the dataset, and InputErrors with everything
    that is wrong with the dataset; nothing was written.
    """
    spec = dataset if isinstance(dataset, DatasetSpec) else read_dataset(dataset, strict=False)
    output = Path(output)
    if layout not in get_args(Layout):
        raise InputError(f"Unknown layout {layout!r}. Available: {', '.join(get_args(Layout))}.")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{shown(output)}: exists already. Give the name of a new folder.")
    if layout == "decathlon" and spec.regions:
        raise InputError(f"{shown(spec.folder)}: the Decathlon layout has no regions. Convert it to nnunet.")
    if layout == "nnunet" and any(case.annotated is not None for case in spec.cases):
        raise InputError(
            f"{shown(spec.folder)}: nnU-Net has no per-case lists of annotated labels: what was not annotated would "
            "become background. Convert it to decathlon."
        )
    values = _new_values(spec) if layout == "nnunet" else {value: value for value in spec.values}
    ending = _ending(spec)
    with replace_folder(output) as part:
        write = partial(_write_case, part, layout, ending, values)
        for name in ("imagesTr", "labelsTr"):
            (part / name).mkdir()
        report = check_dataset(spec, options, workers=workers, visit=partial(write, "Tr"), on_case=on_case)
        warnings = [*report.warnings, *_write_test(spec, part, options, write)]
        description = _nnunet_json(spec, values, ending) if layout == "nnunet" else _decathlon_json(spec, ending)
        write_json(part / "dataset.json", description)
        splits = [Fold(train=list(train), val=list(val)) for train, val in spec.splits]
        if layout == "nnunet" and not splits and (patients := patients_of(spec)):
            splits = make_folds(
                [case.case_id for case in spec.cases],
                labels_of={case.case_id: map(str, case.label_voxels) for case in report.cases},
                group_of=patients,
            )
        if splits:
            write_json(part / "splits_final.json", splits)
    return Conversion(output, len(spec.cases), len(spec.test), values, tuple(warnings))


def _new_values(spec: DatasetSpec) -> dict[int, int]:
    """0, 1, 2, ... for the old values in ascending order; the ignore value comes last."""
    learned = [value for value in spec.values if value != spec.ignore]
    order = learned if spec.ignore is None else [*learned, spec.ignore]
    return {old: new for new, old in enumerate(order)}


def _ending(spec: DatasetSpec) -> str:
    """Flat images stay flat, in a kind that holds masks too; everything else becomes .nii.gz."""
    endings = {mask_ending(path).lower() for case in spec.cases for path in case.images}
    flat = {ending for ending in endings if _flat(ending)}
    if flat and flat != endings:
        raise InputError(
            f"{shown(spec.folder)}: flat images and volumes in one dataset. Give each a dataset of its own."
        )
    if flat:
        return endings.pop() if len(endings) == 1 else ".png"
    return ".nii.gz"


def _flat(ending: str) -> bool:
    return format_of("image" + ending).flat


def _write_case(
    folder: Path, layout: Layout, ending: str, values: dict[int, int], part: str, case: CaseSpec, loaded: LoadedCase
) -> None:
    """Images and label map of a case to ``imagesTr`` and ``labelsTr``, or ``Ts``; ``values`` maps label values."""
    image, labels = loaded
    images, channels = folder / f"images{part}", _narrow(image)
    if layout == "decathlon" or (_flat(ending) and len(channels) == 3):
        name = case.case_id + ("_0000" if layout == "nnunet" else "")
        write_image(images / (name + ending), channels, like=image)
    else:
        for number, channel in enumerate(channels):
            write_image(images / f"{case.case_id}_{number:04d}{ending}", channel[None], like=image)
    if labels is not None:
        table = np.zeros(max(values) + 1, dtype=smallest_type(0, max(values.values())))
        for old, new in values.items():
            table[old] = new
        # Where the label map comes from another kind of file, it gets the geometry of its image.
        write_label_map(folder / f"labels{part}" / (case.case_id + ending), table[labels.array], like=image)


def _narrow(image: MedicalImage) -> npt.NDArray[Any]:
    """Channels in the smallest integer type where all values are whole numbers, else float32."""
    low, high = float(image.array.min()), float(image.array.max())
    if low >= -(2**15) and high < 2**16 and not (low < 0 and high >= 2**15):
        kind = np.dtype("i2") if low < 0 else smallest_type(0, int(high))
        narrow = image.array.astype(kind)
        if np.array_equal(narrow, image.array):
            return narrow
    return image.array


def _write_test(
    spec: DatasetSpec,
    folder: Path,
    options: ReadOptions | None,
    write: Callable[[str, CaseSpec, LoadedCase], None],
) -> list[str]:
    """Test images, and their label maps where there are some; returns warnings."""
    problems: list[str] = []
    warnings: list[str] = []
    for case in spec.test:
        try:
            loaded = load_case(spec, case, options)
        except InputError as error:
            problems += error.args
            continue
        warnings += loaded.warnings
        (folder / "imagesTs").mkdir(exist_ok=True)
        if loaded.labels is not None:
            (folder / "labelsTs").mkdir(exist_ok=True)
        write("Ts", case, loaded)
    refuse(spec.folder, problems, ". Nothing was written.")
    return warnings


def _about(spec: DatasetSpec) -> dict[str, Any]:
    names = ("name", "description", "reference", "licence", "release")
    return {name: text for name in names if (text := getattr(spec, name))}


def _nnunet_json(spec: DatasetSpec, values: dict[int, int], ending: str) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    if spec.regions:
        background = next(name for name, value in spec.labels.items() if value == 0)
        labels[background] = 0
        labels |= {name: [values[v] for v in old] for name, old in spec.regions.items()}
    else:
        labels |= {name: values[value] for name, value in spec.labels.items()}
        if "background" not in labels:  # nnU-Net looks for it by this name
            labels = {"background" if value == 0 else name: value for name, value in labels.items()}
    if spec.ignore is not None:
        labels["ignore"] = values[spec.ignore]
    order = {"regions_class_order": [values[v] for v in spec.region_order]} if spec.regions else {}
    return {
        "channel_names": {str(number): name for number, name in enumerate(spec.channels)},
        "labels": labels,
        **order,
        "numTraining": len(spec.cases),
        "file_ending": ending,
        **_about(spec),
    }


def _decathlon_json(spec: DatasetSpec, ending: str) -> dict[str, Any]:
    def entry(case: CaseSpec) -> dict[str, Any]:
        found: dict[str, Any] = {
            "image": f"./imagesTr/{case.case_id}{ending}",
            "label": f"./labelsTr/{case.case_id}{ending}",
        }
        if case.annotated is not None:
            found["annotated"] = list(case.annotated)
        if case.group is not None:
            found["group"] = case.group
        return found

    return {
        **_about(spec),
        "tensorImageSize": "2D" if _flat(ending) else "4D" if len(spec.channels) > 1 else "3D",
        "modality": {str(number): name for number, name in enumerate(spec.channels)},
        "labels": {str(value): name for name, value in spec.labels.items()},
        **({"ignore": spec.ignore} if spec.ignore is not None else {}),
        "numTraining": len(spec.cases),
        "numTest": len(spec.test),
        "training": [entry(case) for case in spec.cases],
        "test": [f"./imagesTs/{case.case_id}{ending}" for case in spec.test],
    }
