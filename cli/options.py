"""Option values that need reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from medmamba.errors import InputError

Number = TypeVar("Number", int, float)


def numbers(text: str | None, kind: Callable[[str], Number], option: str) -> list[Number] | None:
    """``"1,1,2.5"`` as a list of numbers; None stays None."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r} is not a list of numbers. Write for example {option} 64,96,96.") from error


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
