"""OUT/report.html: the cases of a prediction in the order in which they should be looked at, with the reasons."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import write_text
from medmamba.errors import MedmambaError
from medmamba.geometry.display import Display
from medmamba.images import ReadOptions, read_channels, read_label_map
from medmamba.images.cases import ImageCase
from medmamba.pages.picture import Picture, draw_case
from medmamba.pages.render import render

PAGE = "report.html"
PICTURES = 8
"""Cases shown with a slice, the first of the list."""
STATUSES = ("reject", "review", "ok")


def worst_first(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of cases by their records: by status, then by the lowest expected Dice of a structure."""

    def place(name: str) -> tuple[int, float, str]:
        record = cases[name]
        lowest = min((expected["dice"] for expected in record["expected"].values()), default=1.0)
        return STATUSES.index(record["status"]), lowest, name

    return sorted(cases, key=place)


def write_page(
    target: Path, cases: Mapping[str, Mapping[str, Any]], files: Mapping[str, ImageCase], labels: Mapping[str, int]
) -> None:
    """Write the page of finished cases by name; ``files`` are their images, ``labels`` the values by name."""
    order = worst_first(cases)
    pictures: dict[str, Picture] = {}
    for name in order[:PICTURES]:
        if cases[name]["mask"] is not None:  # none under a pseudonym
            with suppress(MedmambaError, OSError):
                reading = ReadOptions(any_spacing=True)
                mask = read_label_map(target / cases[name]["mask"], reading)
                image = read_channels(files[name].paths, reading)
                values = [value for value in labels.values() if value]
                pictures[name] = draw_case(Display(mask.grid), values, coloured=mask.array, image=image.array)
    write_text(
        target / PAGE,
        render(
            "predictions.html",
            order=order,
            pictures=pictures,
            rows={name: [_row(*pair) for pair in _structures(cases[name])] for name in order},
            reasons={name: _reasons(cases[name]) for name in order},
            status={name: cases[name]["status"] for name in order},
        ),
    )


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
