"""LICENSE, README and metadata.json of a bundle, made from its author's model card."""

from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from medmamba.bundle.options import BundleCard
from medmamba.errors import InputError, counted
from medmamba.inference.trained_model import FoldEnsemble
from medmamba.preprocessing.labels import label_names

SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
NOT_A_DEVICE = "Not a medical device: masks are for research, and whoever uses them for patients must validate them."


def licence_text(card: BundleCard) -> str:
    """The text of LICENSE; raises InputError when the licence names a file that does not exist."""
    path = Path(card.licence)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if "/" in card.licence or card.licence.lower().endswith((".txt", ".md")):
        raise InputError(f"--licence {card.licence}: no such file. Give an SPDX name or an existing text file.")
    return (
        f"SPDX-License-Identifier: {card.licence}\n\nCopyright {date.today().year} {card.authors}\n\n"
        f"The weights in models/ and the configuration of this bundle are under the licence {card.licence}.\n"
        "The Python sources in scripts/ are copied from medmamba, under the Apache License 2.0.\n"
    )


def metadata(card: BundleCard, ensemble: FoldEnsemble, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """configs/metadata.json of a bundle whose main configuration is ``ensemble``."""
    import monai
    import numpy
    import torch

    classes, channels = ["background", *label_names(ensemble.plan)], ensemble.plan.channel_names
    further = [] if ensemble.previous is None else [f"first stage: {name}" for name in classes[1:]]
    task, copyright_line = f"Segmentation of {', '.join(classes[1:])}", f"Copyright {date.today().year} {card.authors}"

    def tensor(kind: str, form: str, names: Sequence[str]) -> dict[str, Any]:
        return {
            "type": kind,
            "format": form,
            "num_channels": len(names),
            "spatial_shape": [f"{n}*n" if n > 1 else "n" for n in ensemble.configuration.network.divisor],
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": True,
            "channel_def": {str(index): name for index, name in enumerate(names)},
        }

    return {
        "schema": SCHEMA_URL,
        "version": card.release,
        "changelog": {card.release: "Exported by medmamba."},
        "name": card.name,
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {name: version(name) for name in ("nibabel", "scipy", "pytorch-ignite", "pillow")},
        "supported_apps": {},
        "task": task,
        "description": card.description or f"{task} by a Mamba network.",
        "authors": card.authors,
        "copyright": copyright_line,
        "data_source": str(provenance["dataset"]),
        "data_type": "picture" if ensemble.configuration.spacing_mm is None else "nifti",
        "image_classes": f"channels: {', '.join(channels)}",
        "label_classes": ", ".join(classes),
        "pred_classes": ", ".join(classes),
        "eval_metrics": {},
        "intended_use": f"{card.intended_use} {NOT_A_DEVICE}",
        "references": list(card.references),
        "network_data_format": {
            "inputs": {"image": {**tensor("image", "magnitude", [*channels, *further]), "modality": channels[0]}},
            "outputs": {"pred": tensor("image", "segmentation", ensemble.heads.names)},
        },
        "medmamba": dict(provenance),
    }


def readme(card: BundleCard, facts: Mapping[str, Any]) -> str:
    """docs/README.md: the model card."""
    made = facts["medmamba"]
    shape = ", ".join(facts["network_data_format"]["inputs"]["image"]["spatial_shape"])
    patch, chosen = made["patch_size"], made["settings"]["configuration"]
    configurations = " + ".join(chosen) + "".join(f", after {name}" for name in made["stages"] if name not in chosen)
    said = (
        "\n\nX_expected.json says what to expect of the mask of X without truth: Dice with a range of 90 %, HD95, "
        "wrong\ncomponents, volume. The rules are in models/expectations.json and hold for these weights alone."
        if made.get("expectations_sha256")
        else ""
    )
    return f"""# {card.name} {card.release}

{facts["description"]}

**Intended use.** {card.intended_use}

**{NOT_A_DEVICE}**

| | |
|---|---|
| channels | {facts["image_classes"].removeprefix("channels: ")} |
| labels | {facts["label_classes"]} |
| training data | {facts["data_source"]}; licence: {card.data_licence or "not stated"} |
| network | {made["network"]}, {counted(made["folds"], "fold")}, {made["parameters"]} parameters |
| scan backend | training: {made["trained_with_scan_backend"]}; export check: {made["settings"]["scan_backend"]} |
| configurations | {configurations} |
| patch | {patch} ({prod(patch)} voxels), any shape ({shape}) works |

## Run

From this folder, with monai, torch, nibabel, scipy, pytorch-ignite and fire installed (medmamba is not needed; where it
is installed its compiled operators are used):

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --logging_file configs/logging.conf --bundle_root . --dataset_dir IMAGES --output_dir MASKS

IMAGES holds `X.nii.gz`, or `X_0000.nii.gz`, `X_0001.nii.gz`, … with one file per channel. Masks keep the grid of their
image.{said}

A bundle's configuration is code. Run only bundles that you trust.
"""
