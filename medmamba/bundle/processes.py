"""Python processes that check a bundle, and the error of a bundle that failed a check."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

from medmamba.errors import MedmambaError, ResourceError


class BundleError(MedmambaError):
    """The bundle gives other results than the model; it was not kept."""


def run_python(code: str, folder: Path, *arguments: str, failure: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, in ``folder``. Raises BundleError with the last twelve lines it printed.

    Raises ResourceError when a disk was full.
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-B", "-c", code, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode:
        printed = (result.stdout + result.stderr).strip().splitlines()
        if any("No space left on device" in line for line in printed):
            raise ResourceError(f"{failure}: the disk of {gettempdir()} or of the bundle is full. Free some space.")
        raise BundleError(f"{failure}: " + " | ".join(line.strip() for line in printed[-12:]))
    return result
