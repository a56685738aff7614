"""Temporary folders: removed when they are no longer needed, or by the next process if theirs was killed.

They are called ``medmamba-<pid>-<machine><random>``. A process holds a lock on its own, so that a folder in use is
recognised from another container too, where process numbers mean something else.
"""

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medmamba.disk.atomic import explained
from medmamba.disk.leftovers import is_in_use, named_here, remove_tree, this_machine
from medmamba.disk.lock import in_use

_getuid = getattr(os, "getuid", None)
_NAME = re.compile(r"medmamba-(?P<pid>[0-9]+)-(?P<machine>[0-9a-f]{4})[0-9a-f]{8}")


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder in ``parent`` (default: the system's temporary folder), removed with all that is in it.

    Those that killed processes of this machine and user left behind in ``parent`` are removed before.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    folder = parent / named_here(f"medmamba-{os.getpid()}-{this_machine()}{secrets.token_hex(4)}")
    with explained(parent):
        _remove_abandoned(parent)
        folder.mkdir(mode=0o700)
    try:
        with in_use(folder):
            yield folder
    finally:
        remove_tree(folder)


def _remove_abandoned(parent: Path) -> None:
    for folder in sorted(parent.glob("medmamba-*")):
        made = _NAME.fullmatch(folder.name)
        if made is None or made["machine"] != this_machine() or not _is_mine(folder):
            continue
        if is_in_use(folder.name, int(made["pid"])):
            continue
        with in_use(folder) as free:
            if free:
                remove_tree(folder)


def _is_mine(folder: Path) -> bool:
    """Whether it is a folder, and of this user: others may write to the temporary folder too."""
    try:
        return not folder.is_symlink() and folder.is_dir() and (_getuid is None or folder.stat().st_uid == _getuid())
    except OSError:
        return False
