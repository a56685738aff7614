"""The plan of a run beside the one that other choices would have made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmamba.models.run_folder import RunFolder
from medmamba.plans import what_if as planner

if TYPE_CHECKING:
    from medmamba.plans.schema import Plan


def what_if(run: str | Path, **changes: Any) -> tuple[Plan, Plan]:
    """The plan of a run folder, and the one that other choices would have made; nothing is written.

    ``changes`` are fields of :class:`medmamba.plans.options.PlanOptions` by name.
    """
    folder = RunFolder(Path(run))
    now = folder.read_plan()
    return now, planner.what_if(now, folder.read_fingerprint(), **changes)
