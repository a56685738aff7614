"""The options of `medmamba report`."""

from __future__ import annotations

from medmamba.inference.options import MIRROR_TEXT
from medmamba.options import DEVICE_TEXT, SCAN_BACKEND_TEXT, Options, ScanBackend, option


class ReportOptions(Options):
    """The choices of :func:`medmamba.run_report.write.write_report`."""

    cases: int | None = option(None, "Largest number of validation cases per fold. Default: all.", ge=1)
    device: str = option("auto", DEVICE_TEXT)
    mirror: bool = option(False, MIRROR_TEXT)
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT)
