"""Unpacking of zip archives of images, never beyond the folder given."""

import errno
import os
import stat
import zipfile
from pathlib import Path, PurePosixPath

from medmamba.errors import InputError, MedmambaError, ResourceError
from medmamba.images.gate import brief, shown

LARGEST_BYTES = 16 * 2**30
MOST_FILES = 50_000
DEEPEST = 32
"""Folders within each other; studies have a handful."""
_CHUNK = 1 << 20


def is_zip(path: Path | str) -> bool:
    """Whether a path is a zip archive, by its content."""
    try:
        return os.path.isfile(path) and zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several disks: unpacking reports it
        return True


def unpack(
    archive: Path | str,
    folder: Path,
    *,
    largest_bytes: int = LARGEST_BYTES,
    most_files: int = MOST_FILES,
    where: str | None = None,
) -> None:
    """Unpack a zip into ``folder``; hidden files and the ones macOS adds are left out.

    Raises InputError for a damaged or encrypted archive, for names that lead out of the folder, for links, and when
    more comes out than ``largest_bytes`` or ``most_files``; the sizes in its directory are not trusted.
    """
    name = where or brief(str(archive))
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir() and not _extra(member.filename)]
            if len(members) > most_files:
                raise InputError(f"{name}: {len(members)} files, more than {most_files}. Pack one study only.")
            left = largest_bytes
            for member in members:
                target = folder / _safe(member, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                left = _copy(opened, member, target, left)
                if left < 0:
                    raise InputError(f"{name}: unpacks to more than {largest_bytes} bytes. Pack one study only.")
    except MedmambaError:
        raise
    except Exception as error:  # zipfile and its decoders raise many kinds
        reason = shown(" ".join(str(getattr(error, "strerror", None) or error).split()))[:80] or type(error).__name__
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise ResourceError(f"{name}: cannot be unpacked: {reason}. Free or check the temporary disk.") from None
        raise InputError(f"{name}: a damaged or unsupported zip archive ({reason}). Pack it again.") from None


def _copy(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int) -> int:
    with opened.open(member) as source, open(target, "xb") as file:
        while left >= 0 and (piece := source.read(_CHUNK)):
            file.write(piece)
            left -= len(piece)
    return left


def _safe(member: zipfile.ZipInfo, name: str) -> PurePosixPath:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise InputError(f"{name}: holds {shown(member.filename)[:60]!r}, a name outside of it. Pack it again.")
    if len(path.parts) > DEEPEST:
        raise InputError(f"{name}: holds {len(path.parts) - 1} folders within each other. Pack one study only.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(f"{name}: holds a link. Pack the files themselves.")
    if member.flag_bits & 1:
        raise InputError(f"{name}: is encrypted. Pack it without a password.")
    return path


def _extra(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
