"""``medmamba doctor``."""

from __future__ import annotations

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console


def doctor() -> Answer:
    """Report versions, devices, memory, and which scan backend runs here and why the others do not."""
    lines = pipeline.doctor()
    for line in lines:
        console.print(line, markup=False)
    return {"lines": lines}
