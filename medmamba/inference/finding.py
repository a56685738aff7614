"""What is unusual about an image or a mask, and how serious it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is unusual, and how serious it is."""

    level: Literal["note", "review", "reject"]
    text: str


def status_of(findings: Iterable[Finding]) -> str:
    """``ok``, ``review`` or ``reject``: the most serious finding decides."""
    found = {finding.level for finding in findings}
    return next((level for level in ("reject", "review") if level in found), "ok")
