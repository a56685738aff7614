"""Option values that need reading."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from medmamba.errors import InputError, unknown_name

Number = TypeVar("Number", int, float)

BYTES_OF = {"": 1e9, "gb": 1e9, "g": 1e9, "gib": 2.0**30, "mb": 1e6, "m": 1e6, "mib": 2.0**20}
"""Units of memory; a bare number is GB."""


def numbers(text: str | None, kind: Callable[[str], Number], option: str) -> list[Number] | None:
    """``"1,1,2.5"`` as a list of numbers; None stays None."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r} is not a list of numbers. Write for example {option} 64,96,96.") from error


def gigabytes(text: str, option: str) -> float:
    """``"6GB"``, ``"6"`` or ``"6144MiB"`` as GB (1e9 bytes)."""
    number = text.strip().rstrip("GgIiBbMm ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        value = float(number) * BYTES_OF[unit] / 1e9
    except (ValueError, KeyError) as error:
        raise InputError(f"{option} {text!r} is not an amount of memory. Write for example {option} 8GB.") from error
    if not 0 < value < math.inf:
        raise InputError(f"{option} {text!r} must be above 0. Write for example {option} 8GB.")
    return value


def names(text: str | None) -> list[str] | None:
    """``"2d, 3d_fullres"`` as a list; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def one_of(text: str, choices: Sequence[str], option: str) -> Any:
    """``text`` if it is one of the choices."""
    if text not in choices:
        raise InputError(f"{option} {text!r} is none of: {', '.join(choices)}.")
    return text


def hours(text: str) -> float | None:
    """``"1.5"`` as a number of hours; ``"none"``: no limit."""
    try:
        return None if text == "none" else float(text)
    except ValueError as error:
        raise InputError(f"--train-hours {text!r} is not a number of hours. Write for example 1.5, or none.") from error


def planning_choices(text: str) -> dict[str, Any]:
    """``"--device-memory 6GB --network mhs_vm"`` as choices of the planner by name."""
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "--network": ("network", str),
        "--device-memory": ("device_memory_gb", lambda value: gigabytes(value, "--device-memory")),
        "--spacing": ("spacing", lambda value: numbers(value, float, "--spacing")),
        "--patch-size": ("patch_size", lambda value: numbers(value, int, "--patch-size")),
        "--batch-size": ("batch_size", lambda value: (numbers(value, int, "--batch-size") or [0])[0]),
        "--configurations": ("configurations", lambda value: None if value == "all" else names(value)),
        "--mirror": ("mirror", str),
        "--machine": ("machine", str),
        "--train-hours": ("train_hours", hours),
    }
    try:
        words = [part for word in shlex.split(text) for part in (word.split("=", 1) if "--" in word else [word])]
    except ValueError as error:
        raise InputError(f"--what-if {text!r} cannot be read ({error}). Write options of `medmamba plan`.") from error
    choices = {}
    for option, value in zip(words[::2], [*words[1::2], None], strict=False):
        if option not in readers:
            raise unknown_name("option of --what-if", option, list(readers))
        if value is None:
            raise InputError(f"--what-if: {option} has no value. Write for example --device-memory 6GB.")
        name, read = readers[option]
        choices[name] = read(value)
    if not choices:
        raise InputError('--what-if is empty. Write for example --what-if "--device-memory 6GB".')
    return choices


def fold_names(text: str) -> list[int | str]:
    """Folds as ``0``, ``0,2,3``, ``0-4`` or ``all``."""
    first, dash, last = text.partition("-")
    if dash and first.isdigit() and last.isdigit() and int(first) <= int(last):
        return list(range(int(first), int(last) + 1))
    return [fold_name(part.strip()) for part in text.split(",")]


def weights_by_name(text: str | None) -> dict[str, float] | None:
    """``"tumour=3,liver=1"`` as weights by name; None stays None."""
    if text is None:
        return None
    weights = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError as error:
            raise InputError(f"--class-weights {part!r} is not NAME=NUMBER. Write for example tumour=3.") from error
    return weights


def fold_name(text: str) -> int | str:
    """A fold as a number, or ``all``."""
    if text == "all":
        return text
    if text.isdigit():
        return int(text)
    raise InputError(f"--fold {text!r} is neither a number nor 'all'. Use for example --fold 0.")


def named_values(texts: list[str] | None, option: str) -> dict[str, int] | None:
    """``["liver=1", "spleen=2"]`` as a table that also has the background; None stays None."""
    if texts is None:
        return None
    table = {"background": 0}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value.isdigit() or int(value) == 0:
            raise InputError(f"{option} {text!r} is not NAME=VALUE with a value above 0. Write {option} liver=1.")
        table[name] = int(value)
    return table
