"""OUT/report.html: the cases of a prediction in the order in which they should be looked at, with the reasons.

Where maps of uncertainty were written, a viewer shows them over image and mask.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.disk.atomic import write_text
from medmamba.errors import MedmambaError
from medmamba.geometry import grid_difference
from medmamba.geometry.display import Display
from medmamba.images import ReadOptions, read_channels, read_label_map
from medmamba.images.cases import UNCERTAINTY, ImageCase
from medmamba.pages.picture import Picture, draw_case
from medmamba.pages.render import COLOURS, render
from medmamba.pages.volume import volume_of

PAGE = "report.html"
PICTURES = 8
"""Cases shown with a slice, the first of the list."""
VIEWED = 6
"""Cases in the viewer, the first of the list."""
READING = ReadOptions(any_spacing=True)
STATUSES = ("reject", "review", "ok")


def worst_first(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of cases by their records: by status, then by the lowest expected Dice of a structure."""

    def place(name: str) -> tuple[int, float, str]:
        record = cases[name]
        lowest = min((expected["dice"] for expected in record["expected"].values()), default=1.0)
        return STATUSES.index(record["status"]), lowest, name

    return sorted(cases, key=place)


def write_page(
    target: Path,
    cases: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, ImageCase],
    labels: Mapping[str, int],
    is_ours: Callable[[Path], bool],
) -> None:
    """Write the page of finished cases by name; ``files`` are their images, ``labels`` the values by name.

    A map of uncertainty is shown if ``is_ours`` says that it was written here, and it is on the grid of its mask.
    """
    order, values = worst_first(cases), {name: value for name, value in labels.items() if value}
    pictures: dict[str, Picture] = {}
    viewed: dict[str, dict[str, Any]] = {}
    for name in order[:PICTURES]:
        if cases[name]["mask"] is not None:  # none under a pseudonym
            with suppress(MedmambaError, OSError):
                mask = read_label_map(target / cases[name]["mask"], READING)
                image = read_channels(files[name].paths, READING).array
                display = Display(mask.grid)
                pictures[name] = draw_case(display, list(values.values()), coloured=mask.array, image=image)
                path = uncertainty_path(target, files[name])
                errors = read_label_map(path, READING) if is_ours(path) and path.is_file() else None
                if len(viewed) < VIEWED and errors is not None and not grid_difference(mask.grid, errors.grid):
                    chance = errors.array.astype(np.uint8)
                    seen = image if mask.grid.affine is None and len(image) == 3 else image[:1]
                    indices = _indices(mask.array, values.values())
                    viewed[name] = volume_of(f"{cases[name]['status']}: {name}", display, seen, indices, errors=chance)
    shown = {"cases": list(viewed.values()), "names": list(values), "colours": COLOURS}
    write_text(
        target / PAGE,
        render(
            "predictions.html",
            order=order,
            pictures=pictures,
            volumes={**shown, "truth": False, "unit": "", "presets": []},
            viewed=list(viewed),
            rows={name: [_row(*pair) for pair in _structures(cases[name])] for name in order},
            reasons={name: _reasons(cases[name]) for name in order},
            status={name: cases[name]["status"] for name in order},
        ),
    )


def _indices(mask: NDArray[np.integer], values: Iterable[int]) -> NDArray[np.int32]:
    """Label values as numbers from 1, in their order; the viewer's."""
    found = np.zeros(mask.shape, np.int32)
    for index, value in enumerate(values, start=1):
        found[mask == value] = index
    return found


def _structures(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(record["expected"].items(), key=lambda pair: float(pair[1]["dice"]))


def _row(name: str, expected: Mapping[str, Any]) -> list[str]:
    numbers = [f"{expected['dice']:.2f}", f"{expected['low']:.2f} to {expected['high']:.2f}"]
    others = ["–" if expected[key] is None else f"{expected[key]:.1f}" for key in ("hd95_mm", "components")]
    risk = "–" if expected["risk"] is None else f"{expected['risk']:.0%}"
    return [name, *numbers, *others, risk]


def _reasons(record: Mapping[str, Any]) -> list[str]:
    """What speaks against the masks of a case, structure by structure, then its findings and what is not known."""
    lines = [f"{name}: {reason}" for name, expected in _structures(record) for reason in expected["reasons"]]
    lines += [f"{name}: {expected['note']}" for name, expected in _structures(record) if expected["note"]]
    lines += [finding["text"] for finding in record["findings"] if finding["level"] != "note"]
    return lines + [f"{name or 'all structures'}: {why}" for name, why in record["not_learned"].items()]


def uncertainty_path(target: Path, case: ImageCase) -> Path:
    """Where the uncertainty of a case stands, in the format of its mask."""
    return target / f"{case.case_id}{UNCERTAINTY}{case.output_name[len(case.case_id) :]}"
