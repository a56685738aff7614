"""What was asked of the planner; the plan carries it, so that planning anew and "what if" start from the same wish."""

from __future__ import annotations

from typing import ClassVar

from medmamba.plans.record import Record


class PlanOptions(Record):
    """The choices of :func:`medmamba.plans.planner.make_plan`; None leaves a number to the rules."""

    kind: ClassVar[str] = "plan options"

    network: str = "vm_unet"
    device_memory_gb: float = 8.0
    spacing: list[float] | None = None
    patch_size: list[int] | None = None
    batch_size: int | None = None
    configurations: list[str] | None = None
    use_scan: bool = True
    mirror: str = "auto"
    machine: str = "cpu"
    train_hours: float | None = None
