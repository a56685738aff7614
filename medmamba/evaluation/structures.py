"""What is compared: label values by name, and regions that join several labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmamba.errors import ConfigError

Structures = dict[str, tuple[int, ...]]
"""Name of each structure and the label values that belong to it."""


def structures_of_report(folder: Path) -> Structures | None:
    """Every foreground label, then every region, of the report.json in a folder of predictions; None without one.

    Raises ConfigError when it is damaged, or a region names a label that does not exist.
    """
    path = folder / "report.json"
    if not path.is_file():
        return None
    try:
        model: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
        labels = {str(name): int(value) for name, value in model["labels"].items()}
        regions = {
            str(name): [str(member) for member in members] for name, members in (model.get("regions") or {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a prediction report ({error}). Remove or restore it.") from error
    found: Structures = {name: (value,) for name, value in labels.items() if value != 0}
    for region, members in regions.items():
        unknown = [name for name in members if name not in labels]
        if unknown:
            raise ConfigError(f"Region {region!r} joins {unknown[0]!r}, which is not a label. Correct the region.")
        found.setdefault(region, tuple(sorted(labels[name] for name in members)))
    return found


def structures_found(values: Sequence[int]) -> Structures:
    """A structure per label value other than 0, for masks whose labels nobody has named."""
    return {f"label_{value}": (int(value),) for value in sorted(set(values) - {0})}
