"""Unfinished files and folders of killed processes: how they are named, and when they are removed.

Beside its final place something unfinished is called ``.name.<pid>.<machine><random>.part``. The next process that
writes the same name removes what dead processes of this machine left of it; who has the lock of a folder removes all.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
from pathlib import Path

_PART = re.compile(r"\.(?P<name>.+?)(?P<old>\.old)?\.(?P<pid>[0-9]+)\.(?P<machine>[^.]{4})[^.]{4}\.part", re.DOTALL)
"""Whether a name was made by :func:`part_beside`."""


_named_here: set[str] = set()


def part_beside(path: Path) -> Path:
    """A new name for ``path`` while it is unfinished."""
    return path.parent / named_here(f".{_kept(path.name)}.{os.getpid()}.{this_machine()}{secrets.token_hex(2)}.part")


def named_here(name: str) -> str:
    """The name of an unfinished file of this process, remembered by it."""
    _named_here.add(name)
    return name


def is_in_use(name: str, pid: int) -> bool:
    """Whether the process that gave a name is alive.

    A killed one may have had the number of this one: a restarted container counts from 1 again.
    """
    return name in _named_here if pid == os.getpid() else is_alive(pid)


def remove_leftovers(folder: Path | str, *, shared: bool = False, of: str | None = None) -> list[Path]:
    """Remove ``.part`` files and folders of processes that are gone; returns what was removed.

    Call it while holding the folder's lock: a process on another machine cannot be distinguished from a dead one. Where
    others may be running (``shared``), only leftovers of this machine are removed. ``of``: only those of this name.
    """
    removed = []
    for part in sorted(Path(folder).glob(".*.part")):
        wrote = _PART.fullmatch(part.name)
        if wrote is None or is_in_use(part.name, int(wrote["pid"])) or (shared and wrote["machine"] != this_machine()):
            continue
        if of is not None and wrote["name"] != _kept(of):
            continue
        with contextlib.suppress(OSError):  # of another user: what is to be written does not depend on it
            if wrote["old"] and not (part.parent / wrote["name"]).exists():
                part.rename(part.parent / wrote["name"])
                continue
            remove_tree(part)
            removed.append(part)
    return removed


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def this_machine() -> str:
    """Four digits of a machine in the names of its unfinished files."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    if sys.platform == "win32":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _kept(name: str) -> str:
    # 255 bytes is the usual limit of a file name; the rest is for pid and random part.
    return os.fsencode(name)[:200].decode("utf-8", "ignore")
