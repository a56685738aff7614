"""Options of a verb as one record: default, help text, panel and bounds of each, told once.

The command line is made from these records (medmamba/cli), a recipe file sets the same fields, and so does Python.

    class PredictOptions(Options):
        patches_per_batch: int = option(1, "Patches that go through the network together.", panel="Speed", ge=1)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from medmamba.errors import ConfigError, InputError, unknown_name

DEVICE_TEXT = "auto, cpu, cuda or cuda:N."
"""Help text of every ``device``."""


class Options(BaseModel):
    """Frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Record = TypeVar("Record", bound=Options)
Number = TypeVar("Number", int, float)


def option(default: Any, text: str, *, panel: str | None = None, flag: str | None = None, **bounds: Any) -> Any:
    """A field of a record of options.

    Args:
        default: of Python, of recipe files and of the command line alike.
        text: one sentence for ``--help`` and the reference page; numbers in it are formatted from their constants.
        panel: heading of ``--help`` under which it stands.
        flag: name on the command line where it differs from the field's (``--no-mirror``).
        bounds: of pydantic's Field: ge, gt, le, lt.
    """
    return Field(default=default, description=text, json_schema_extra={"panel": panel, "flag": flag}, **bounds)


def flag_of(kind: type[BaseModel], name: str) -> str:
    """The option of a field on the command line: its own ``flag``, else ``--`` and its name."""
    extra = kind.model_fields[name].json_schema_extra
    flag = extra.get("flag") if isinstance(extra, dict) else None
    return str(flag or "--" + name.replace("_", "-"))


def with_changes(options: Record, changes: Mapping[str, Any]) -> Record:
    """A record of options with other values of some fields, all checked again.

    Raises ConfigError with one line per fault: an unknown name with the nearest valid one, or the option, its value
    and what is wrong with it.
    """
    kind = type(options)
    for name in changes:
        if name not in kind.model_fields:
            raise unknown_name("option", name, list(kind.model_fields))
    chosen = {name: getattr(options, name) for name in options.model_fields_set}
    try:
        return kind(**{**chosen, **changes})
    except ValidationError as error:
        raise ConfigError("\n".join(_fault(kind, fault) for fault in error.errors())) from error


def _fault(kind: type[BaseModel], fault: Any) -> str:
    name, value = str(fault["loc"][0]), fault["input"]
    if fault["type"] == "literal_error":
        return str(unknown_name(name.replace("_", " "), str(value), re.findall(r"'([^']*)'", fault["ctx"]["expected"])))
    message = fault["msg"].removeprefix("Value error, ")
    return f"{flag_of(kind, name)} {value!r}: {message[:1].lower()}{message[1:].rstrip('.')}."


def numbers(value: Any, kind: Callable[[str], Number], flag: str) -> tuple[Number, ...] | None:
    """``"96,96,96"`` or ``"96x96x96"`` as a tuple of numbers; what is not text is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(kind(part) for part in value.replace("x", ",").split(","))
    except ValueError as error:
        raise InputError(f"{flag} {value!r} is not a list of numbers. Write for example {flag} 64,96,96.") from error


def _parts(value: Any) -> Any:
    """``"64,96,96"`` or ``"64x96x96"`` as its parts; lists as tuples."""
    parts = [part.strip() for part in value.replace("x", ",").split(",")] if isinstance(value, str) else value
    return tuple(parts) if isinstance(parts, list) else parts


def _names(value: Any) -> Any:
    """``"2d, 3d_fullres"`` as the names in it; lists as tuples."""
    names = [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
    return tuple(names) if isinstance(names, list) else names


Integers = Annotated[tuple[int, ...], BeforeValidator(_parts)]
"""Whole numbers, one per axis; as text ``64,96,96``."""

Numbers = Annotated[tuple[float, ...], BeforeValidator(_parts)]
"""Numbers, one per axis; as text ``1,1,2.5``."""

Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Names; as text ``2d,3d_fullres``."""
