"""The lock of a folder, which the system releases when the process that holds it ends."""

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from medmamba.disk.atomic import BINARY_NO_LINK, explained, identity_of, locked, make_folder
from medmamba.errors import InputError

_held: set[int] = set()
"""Lock files of this process. A forked child (a data worker) closes them: it may run longer than its parent."""


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class FolderLock:
    """Keeps a second run out of a folder; the system releases it when the process dies.

        with FolderLock(run):
            ...

    Raises InputError (exit code 2), naming the other process, when the folder is in use. Where the file system has
    no locks, a file that exists only while the folder is in use takes their place. When the block fails, what the lock
    made is removed: its file, and the folder if there is nothing else in it.
    ``patience_seconds``: wait so long for the other one to finish. ``shared``: for runs that may be in the folder at
    once, but not together with one that is not shared.
    """

    def __init__(self, folder: Path | str, *, patience_seconds: float = 0.0, shared: bool = False) -> None:
        self.folder = Path(folder)
        self.shared = shared
        self.patience_seconds = patience_seconds
        self._file: int | None = None
        self._exclusive: Path | None = None
        self._made_file = self._made_folder = False

    def __enter__(self) -> "FolderLock":
        self._made_folder = not self.folder.exists()
        path = self.folder / ".lock"
        with explained(path):
            file = self._open(path)
            while self._exclusive is None and not _is_at(file, path):  # another command failed and removed it
                os.close(file)
                file = self._open(path)
            record = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, record)  # a shared lock names its last holder
        self._file = file
        _held.add(file)
        locked[self.folder] = identity_of(self.folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file not in _held:  # never taken, or taken by the process that this one was forked from
            return
        _held.remove(self._file)
        locked.pop(self.folder, None)
        if not self.shared:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
                if kind is not None and self._made_file:
                    (self.folder / ".lock").unlink()
                    if self._made_folder:
                        self.folder.rmdir()
        if self._exclusive is not None:
            self._exclusive.unlink(missing_ok=True)
        else:
            _flock(self._file, release=True)
        os.close(self._file)
        self._file = self._exclusive = None

    def _open(self, path: Path) -> int:
        """The lock file, opened and locked."""
        make_folder(self.folder)
        self._made_file = not os.path.lexists(path)
        file = os.open(path, os.O_RDWR | os.O_CREAT | BINARY_NO_LINK, 0o644)
        try:
            if not _is_lock(_record(file)):
                raise InputError(f"{path}: not a lock of medmamba. Remove or rename it, or choose another folder.")
            self._take(file)
        except BlockingIOError:
            owner = _owner(_record(file))
            os.close(file)
            raise InputError(
                f"{self.folder} is in use by {owner}. Wait until it has finished, or choose another folder."
            ) from None
        except BaseException:
            os.close(file)
            raise
        return file

    def _take(self, file: int) -> None:
        end = time.monotonic() + self.patience_seconds
        while True:
            try:
                if not _flock(file, shared=self.shared) and not self.shared:
                    self._take_exclusive()
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.05)

    def _take_exclusive(self) -> None:
        path = self.folder / ".lock.exclusive"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            raise BlockingIOError from None
        self._exclusive = path


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def in_use(folder: Path) -> Iterator[bool]:
    """Lock a folder itself, without a file in it; gives False where another process has it."""
    if sys.platform == "win32":  # a folder cannot be opened there
        yield True
        return
    file = os.open(folder, os.O_RDONLY)
    _held.add(file)
    try:
        try:
            _flock(file)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        if file in _held:  # not in a process that was forked meanwhile
            _held.remove(file)
            os.close(file)


def _flock(file: int, *, release: bool = False, shared: bool = False) -> bool:
    """Takes or releases the lock; False where there are no locks; BlockingIOError when somebody else has it."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        take = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        fcntl.flock(file, fcntl.LOCK_UN if release else take)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _record(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, 4096)


def _is_lock(record: bytes) -> bool:
    """Whether the content is a holder's, or empty (zeros after a power failure)."""
    return not record.strip(b"\0") or (record.startswith(b'{"pid": ') and record.rstrip(b"\0").endswith(b"}"))


def _owner(record: bytes) -> str:
    try:
        owner: Mapping[str, Any] = json.loads(record)
        return f"process {int(owner['pid'])} on {str(owner['host'])[:64]!r}"
    except (ValueError, KeyError, TypeError):
        return "another process"
