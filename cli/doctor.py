"""``medmamba doctor``."""

from __future__ import annotations


def doctor() -> None:
    """What this machine can do: versions, devices, and which scan backend runs and why the others do not."""
    from medmamba.cli.console import console
    from medmamba.doctor import doctor_lines

    for line in doctor_lines():
        console.print(line, markup=False)
