"""A mask file and the series it was predicted from, as a DICOM SEG file."""

from __future__ import annotations

import json
from pathlib import Path

from medmamba.dicom.codes import read_codes
from medmamba.dicom.segmentation import write_segmentation
from medmamba.dicom.study import one_series
from medmamba.errors import ConfigError, InputError
from medmamba.geometry import grid_difference
from medmamba.geometry.trail import reindexed
from medmamba.images import read_image, read_label_map


def mask_to_segmentation(
    mask: Path | str,
    series: Path | str,
    output: Path | str,
    *,
    labels: dict[str, int] | None = None,
    codes: Path | str | None = None,
    choice: str | None = None,
) -> dict[str, int]:
    """Write the DICOM SEG of ``mask`` for its series; returns the labels that it names.

    Args:
        labels: name to value; those of report.json beside the mask if None.
        series: folder or zip of the series, or of a study that holds it.
        choice: number or UID of the series, where the study holds several.
        codes: the labels file with codes and colours (see ``codes.py``); every label is Tissue if None.
    """
    names = labels if labels is not None else _labels_beside(Path(mask))
    described, found = read_codes(codes, list(names)), read_label_map(mask)
    with one_series(series, choice) as folder:
        image = read_image(folder)
        array = reindexed(found.array[None], found.grid, image.grid)
        if array is None:
            difference = grid_difference(image.grid, found.grid) or "differ in their axes"
            raise InputError(f"{series} and {mask} {difference}. Give the series that the mask was made from.")
        write_segmentation(output, array[0], image.grid, folder, names, described)
    return names


def _labels_beside(mask: Path) -> dict[str, int]:
    report = mask.parent / "report.json"
    try:
        return dict(json.loads(report.read_text())["model"]["labels"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"{report}: not found, so the names of the labels are unknown. Keep the report of `medmamba predict` "
            "beside the mask, or name the labels: --label anterior=1 --label posterior=2."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{report}: not a prediction report ({error}).") from error
