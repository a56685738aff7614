"""``medmamba doctor``."""

from __future__ import annotations

from medmamba.cli.answer import Answer


def doctor() -> Answer:
    """What this machine can do: versions, devices, and which scan backend runs and why the others do not."""
    from medmamba.cli.console import console
    from medmamba.doctor import doctor_lines

    lines = list(doctor_lines())
    for line in lines:
        console.print(line, markup=False)
    return {"lines": lines}
