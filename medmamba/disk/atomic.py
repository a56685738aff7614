"""Atomic writing of files and folders: whole, or not at all.

A file is written in its own folder as ``.name.<pid>.<random>.part``, flushed to the disk, checked if the caller can
check it, then renamed. Nothing that carries a final name is ever partial, whatever is killed and whenever.

    with write_atomically(path, verify=check) as file:
        file.write(data)

A full disk, a read-only folder and a missing right end in one ResourceError line, and the partial file is removed.
``MEDMAMBA_CRASH_AT=replace:3`` kills the process at the third rename: the tests walk through all such points.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import IO, Any

from medmamba.disk.leftovers import part_beside, remove_leftovers
from medmamba.errors import InputError, ResourceError

Verify = Callable[[Path], None]
MANY_FILES = 64  # from here on one call for the whole file system costs less than one for each file
BINARY_NO_LINK = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
"""Flags of `os.open` for the records in other people's folders: bytes as they are, and no links."""
_passed: dict[str, int] = {}
before_rename: ContextVar[Callable[[Path, Path], None] | None] = ContextVar("before_rename", default=None)
"""Receives each finished temporary file and the name that it is about to take (``own_files.py`` records them)."""

locked: dict[Path, tuple[int, int]] = {}
"""Folders that this process has locked (``lock.py``), with device and inode: one that is moved is not made anew."""

_FULL = ("the disk is full", "Free some space or choose another folder; nothing half-written was left.")
_DENIED = ("permission denied", "Choose a folder that you may write to, or change the permissions.")
_IN_THE_WAY = ("a file is where a folder is needed", "Remove that file or choose another folder.")
_CAUSES = {
    errno.ENOSPC: _FULL,
    getattr(errno, "EDQUOT", errno.ENOSPC): _FULL,
    errno.EFBIG: ("the file would be larger than this system allows", "Choose another file system."),
    errno.EROFS: ("it is on a read-only file system", "Choose another folder."),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: ("a folder is where a file is needed", "Remove or rename that folder, or choose another one."),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "Use a shorter case name or folder."),
    errno.ELOOP: ("it is a broken symbolic link", "Remove the link or choose another folder."),
}
"""Problem and cure by the number of a system error."""
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without fsync (some network shares and FUSE); EIO and ENOSPC are failed writes."""
OTHER_CURE = "Check the disk or choose another folder."


@contextlib.contextmanager
def write_atomically(path: Path | str, *, verify: Verify | None = None, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside ``path`` that takes its name when the block ends well.

    Args:
        path: the final place; folders above it are made, a link standing there is replaced, never written through.
        verify: looks at the finished temporary file before it is renamed, and raises if something is wrong.
        mode: permissions from the first byte on, less those that the umask takes away.

    Raises:
        ResourceError: the disk is full, or the folder cannot be written to. Nothing is left behind.
    """
    path = Path(path)
    with explained(path):
        _refuse_moved(path)
        make_folder(path.parent)
        if path.is_dir() and not path.is_symlink():
            raise InputError(f"{path} is a folder, and a file of that name is to be written. Remove or rename it.")
        remove_leftovers(path.parent, shared=True, of=path.name)
        part = part_beside(path)
        try:
            _pass("open")
            with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                yield file
                _pass("write")
                file.flush()
                _fsync(file.fileno())
            _pass("fsync")
            if verify is not None:
                verify(part)
            _pass("verify")
            if (record := before_rename.get()) is not None:
                record(part, path)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        _pass("replace")
        _sync_folder(path.parent)
        _pass("folder")


def write_bytes(path: Path | str, data: bytes, *, verify: Verify | None = None) -> None:
    """Writes ``data`` to ``path``, whole or not at all."""
    with write_atomically(path, verify=verify) as file:
        file.write(data)


def write_pair(
    header: Path, head: bytes, data: Path, send: Callable[[IO[bytes]], object], *, verify: Verify | None = None
) -> None:
    """Writes a header file and the data file that belongs to it, so that a header never belongs to wrong data.

    Two names cannot change in one step: the old header goes first and the new one comes last. When anything fails,
    ``verify`` (called with the final header) included, neither file is left.
    """
    try:
        with explained(header):
            header.unlink(missing_ok=True)
        with write_atomically(data) as file:
            send(file)
        write_bytes(header, head)
        if verify is not None:
            verify(header)
    except BaseException:
        for path in (header, data):
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def write_text(path: Path | str, text: str) -> None:
    """Writes ``text`` as UTF-8 with Unix line ends; bytes of file names that are not text are escaped, as in JSON."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: Any) -> None:
    """Writes ``value`` as strict JSON (no NaN), indented, with a line end; the same value gives the same bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def replace_folder(path: Path | str, *, verify: Verify | None = None) -> Iterator[Path]:
    """Gives a fresh folder beside ``path`` that takes its name, as a whole, when the block ends well.

    What stood at ``path`` before is removed only after the new folder is there. On Linux the two are exchanged in
    one step; elsewhere a kill between two renames leaves the old folder to be put back by ``remove_leftovers``.
    """
    path = Path(path)
    with explained(path):
        _refuse_moved(path)
        make_folder(path.parent)
        if path.is_symlink() or path.is_file():
            raise InputError(
                f"{path} is not a folder, and a folder of that name is to be written. Remove or rename it."
            )
        remove_leftovers(path.parent, shared=True, of=path.name)
        part = part_beside(path)
        try:
            _pass("open")
            part.mkdir()
            yield part
            _pass("write")
            _sync_tree(part)
            _pass("fsync")
            if verify is not None:
                verify(part)
            _pass("verify")
            old = _swap_in(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        _pass("replace")
        _sync_folder(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        _pass("folder")


def identity_of(folder: Path) -> tuple[int, int]:
    """Device and inode of a folder; zeros where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _refuse_moved(path: Path) -> None:
    """Raises ResourceError if ``path`` is to be written into a locked folder that is no longer where it was."""
    for folder, identity in list(locked.items()):
        if folder in path.parents and not (folder / ".lock").exists() and identity_of(folder) != identity:
            raise ResourceError(
                f"{folder}: moved or removed while it was in use. What was finished went with it. Move it back."
            )


def make_folder(path: Path | str) -> Path:
    """Makes a folder and those above it; one clear line if that cannot be done."""
    path = Path(path)
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turns a failed write into a ResourceError of one line: what, where, what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            _refuse_moved(Path(path))
        what, cure = cause_of(error) or ((error.strerror or str(error)).lower(), OTHER_CURE)
        shown = os.fspath(path)
        shown = shown if shown.isprintable() else shown.encode("unicode_escape").decode()
        raise ResourceError(f"Cannot write {shown}: {what}. {cure}") from error


def cause_of(error: OSError) -> tuple[str, str] | None:
    """Problem and cure of a system error; None for one that says nothing definite."""
    return _CAUSES.get(error.errno or 0)


def _swap_in(part: Path, path: Path) -> Path | None:
    """Gives ``part`` the name ``path``; returns the new path of the folder that had it."""
    if not path.exists():
        part.rename(path)
        return None
    if _exchange(part, path):
        return part
    old = part_beside(path.with_name(path.name + ".old"))
    path.rename(old)
    _pass("replace")
    try:
        part.rename(path)
    except BaseException:
        if not path.exists():
            old.rename(path)
        raise
    return old


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step (Linux renameat2); False where that does not exist."""
    if (renameat2 := _system_call("renameat2")) is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def _system_call(name: str) -> Any:
    """A Linux system function that Python does not offer, or None where it does not exist."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError):
        return getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return None


def _sync_tree(top: Path) -> None:
    """Brings a folder and all that is in it to the disk; very many files in one call where the system has one."""
    tree = [(Path(folder), files) for folder, _, files in os.walk(top)]
    if sum(len(files) for _, files in tree) > MANY_FILES and _sync_file_system(top):
        return
    for folder, files in tree:
        for name in files:
            # Windows flushes only what is open for writing.
            with open(folder / name, "r+b" if sys.platform == "win32" else "rb") as file:
                _fsync(file.fileno())
        _sync_folder(folder)


def _sync_file_system(folder: Path) -> bool:
    """Brings all that its file system holds to the disk (Linux syncfs); False where that does not exist."""
    if (syncfs := _system_call("syncfs")) is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor) != 0:  # a failed write to the disk is reported here, as by fsync
            if (number := ctypes.get_errno()) in NO_FSYNC:
                return False  # file by file, as where there is no such call
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
    return True


def _fsync(descriptor: int) -> None:
    """Flush a file or folder to disk (fsync); one warning per process if the file system does not support it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
        _warn_of_no_fsync()


@cache
def _warn_of_no_fsync() -> None:
    text = "This file system does not support fsync, so a power failure may lose the files written last."
    warnings.warn(f"{text} Prefer a local disk.", stacklevel=3)


def _sync_folder(path: Path) -> None:
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        _fsync(folder)
    finally:
        os.close(folder)


def _pass(point: str) -> None:
    """Kills this process if MEDMAMBA_CRASH_AT asks for it here (tests only)."""
    if (wanted := os.environ.get("MEDMAMBA_CRASH_AT")) is None:
        return
    _passed[point] = _passed.get(point, 0) + 1
    if wanted == f"{point}:{_passed[point]}":
        os.kill(os.getpid(), signal.SIGKILL)
