"""JSON files of users, read strictly: no duplicate keys, no NaN, no bottomless nesting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from medmamba.errors import InputError
from medmamba.images.gate import read_small, shown

LARGEST_BYTES = 10 * 2**20
DEEPEST = 32


class _Refused(ValueError):
    """The text is JSON as Python reads it, but not as we do."""


def read_json(path: Path | str, where: str | None = None) -> Any:
    """The value in a UTF-8 JSON file (a byte order mark is accepted).

    Raises:
        InputError: not a readable file, larger than 10 MiB, not JSON, or with duplicate keys, NaN or deep nesting.
    """
    where = where or shown(path)
    raw = read_small(path, LARGEST_BYTES, where)
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_depth(value)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}. Correct it there."
        ) from None
    except RecursionError:
        raise InputError(f"{where}: nested deeper than {DEEPEST} levels. Check that it is the right file.") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}. Correct it.") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _Refused(f"the key {key!r} occurs twice")
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a number in JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST + 1:
            raise _Refused(f"nested deeper than {DEEPEST} levels")
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
