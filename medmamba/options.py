"""Options of a verb as one record: default, help text, panel and bounds of each, told once.

The command line is made from these records (medmamba/cli), a recipe file sets the same fields, and so does Python.

    class PredictOptions(Options):
        patches_per_batch: int = option(1, "Patches that go through the network together.", panel="Speed", ge=1)
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def option(default: Any, text: str, *, panel: str | None = None, flag: str | None = None, **bounds: Any) -> Any:
    """A field of a record of options.

    Args:
        default: of Python, of recipe files and of the command line alike.
        text: one sentence for ``--help`` and the reference page; numbers in it are formatted from their constants.
        panel: heading of ``--help`` under which it stands.
        flag: name on the command line where it differs from the field's (``--no-mirror``).
        bounds: of pydantic's Field: ge, gt, le, lt.
    """
    return Field(default=default, description=text, json_schema_extra={"panel": panel, "flag": flag}, **bounds)
