"""The options of `medmamba find-best`."""

from __future__ import annotations

from pathlib import Path

from medmamba.inference.options import NO_MIRROR_TEXT
from medmamba.options import DEVICE_TEXT, SCAN_BACKEND_TEXT, Options, ScanBackend, option


class FindBestOptions(Options):
    """The choices of :func:`medmamba.model_selection.run.find_best`."""

    device: str = option("auto", DEVICE_TEXT)
    mirror: bool = option(True, NO_MIRROR_TEXT, flag="--no-mirror")
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT)
    scratch: Path | None = option(
        None, "Folder for temporary probabilities of regions. Default: the system's temporary folder."
    )
