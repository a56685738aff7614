"""Errors that a user of medmamba can meet.

MedmambaError
├── InputError        wrong usage or bad data: nothing was done                  exit code 2
│   └── ConfigError   a plan, checkpoint or option does not fit
├── PartialError      some cases failed, all others are finished                 exit code 1
└── ResourceError     memory or disk ran out, or a folder cannot be written to   exit code 4

Every message says what was wrong, where, and what to do, in one line. The command line prints it and exits
with the class's code; no traceback reaches the user unless ``--debug`` asks for it.
"""

from collections.abc import Sequence
from pathlib import Path


class MedmambaError(Exception):
    """Base of all errors that are shown to the user as one line."""

    exit_code = 2

    def __str__(self) -> str:  # each argument is a line
        return "\n".join(map(str, self.args))


class InputError(MedmambaError):
    """Wrong usage or bad data; nothing was done."""


class ConfigError(InputError):
    """A plan, checkpoint or option is not usable as given."""


class InputErrors(InputError):
    """Several problems found in one pass, one line each; the last line may be their summary."""


class PartialError(MedmambaError):
    """Some cases failed; all others are finished and on disk."""

    exit_code = 1


class ResourceError(MedmambaError):
    """Memory or disk ran out, or a folder cannot be written to."""

    exit_code = 4


class Terminated(SystemExit):
    """SIGTERM or SIGHUP (exit code 128 and its number): it unwinds the command as Ctrl-C does.

    Attributes:
        advice: what is on disk and how to continue.
    """

    advice = "What was written is complete."


def first_line(error: BaseException) -> str:
    """An error of a library in one line of at most 160 characters: its class, and the first line of what it says."""
    said = str(error).strip().splitlines()[:1]
    return ": ".join([type(error).__name__, *said])[:160]


def printable(text: str, kept: str = "\n") -> str:
    """Text whose control characters are written out, but for those in ``kept``: they cannot paint a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in text)


def as_text(name: str) -> str:
    """A file name as text for JSON, pages and other file names: a byte that is not UTF-8 as ``\\udcfc``."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_text(path: Path) -> bool:
    """Whether a path is UTF-8; some libraries open no other."""
    return as_text(str(path)) == str(path)


def counted(count: int, noun: str) -> str:
    """A number and what it counts: 1 case, 2 cases."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size_text(count: float) -> str:
    """Bytes as GiB, or as MiB where that would be 0.0 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 0.1 * 2**30 else f"{-(-count // 2**20):.0f} MiB"


def gib_text(value: float | None) -> str:
    """GiB for people to read."""
    return "unknown" if value is None else f"{value:.2f} GiB"


def need_packages(purpose: str, modules: Sequence[str], extra: str) -> None:
    """Raises ConfigError with the install line when modules of an optional extra of medmamba are missing."""
    from importlib.util import find_spec

    if missing := [name for name in modules if find_spec(name) is None]:
        raise ConfigError(f"{purpose} {', '.join(missing)}. Install with: pip install -e '.[{extra}]'.")


def unknown_name(kind: str, name: str, available: Sequence[str]) -> ConfigError:
    """The error for a name that is not in a registry, with the nearest valid spelling."""
    from difflib import get_close_matches

    near = get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(sorted(available))}.")
