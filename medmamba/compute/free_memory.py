"""Main memory: what is free on this machine, what there is, and the most that this process had."""

import os
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that this process can still take without swapping; None where the system does not say.

    The limit of a container (control groups, version 2) is respected.
    """
    known = [value for value in (_of_system(), _of_container()) if value is not None]
    return max(0, min(known)) if known else None


def main_memory() -> int | None:
    """Bytes of main memory, free or not; None where the system does not say."""
    return _pages("SC_PHYS_PAGES")


def peak_of_process() -> int | None:
    """The most bytes of main memory that this process has had so far; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gib(size: int | None) -> float | None:
    """A size in GiB; None stays."""
    return None if size is None else size / 2**30


def _of_system() -> int | None:
    try:
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _pages("SC_AVPHYS_PAGES")


def _of_container() -> int | None:
    try:
        limit, used = ((CONTROL_GROUP / name).read_text() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no control groups, or "max"
        return None


def _pages(name: str) -> int | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
