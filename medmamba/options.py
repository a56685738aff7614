"""Options of a command as one record: default, help text, panel and bounds of each in one place.

The command line is made from these records (medmamba/cli), a recipe file sets the same fields (medmamba/recipe.py), and
so does Python. A value may be given as the text of the command line wherever its type is one of those below.

    class PredictOptions(Options):
        patches_per_batch: int = option(1, "Patches that go through the network together.", panel="Speed", ge=1)
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from medmamba.errors import ConfigError, unknown_name

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ScanBackend = Literal["auto", "cpp", "triton", "torch"]


def listed(names: Any) -> str:
    """Names, or the values of a Literal, as text: "a, b or c"."""
    *first, last = names if isinstance(names, tuple) else get_args(names)
    return f"{', '.join(first)} or {last}"


DEVICE_TEXT = "Device: auto, cpu, cuda or cuda:N."
SCAN_BACKEND_TEXT = (
    f"Implementation of the selective scan: {listed(ScanBackend)}; auto: the fastest that this machine can run."
)
OVERWRITE_TEXT = "Replace files that medmamba did not write, or that were changed since."
"""Help texts of every ``device``, ``scan_backend`` and ``overwrite``."""


_NO_TEXT = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes on the command line that are not UTF-8."""


class Options(BaseModel):
    """Frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Bytes that are no text are refused; True and False are no numbers, in lists and tables neither."""
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and _NO_TEXT.search(text):
                raise ValueError("is not UTF-8 text. Write it with the characters of UTF-8.")
        parts = set(_parts(cls.model_fields[str(info.field_name)].annotation))
        return _switches_as_text(value) if parts & {int, float} and bool not in parts else value

    @field_validator("*")
    @classmethod
    def _neither_huge_nor_empty(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("is too large. Write a number below 2^63.")
        if value == () and cls.model_fields[str(info.field_name)].default != ():
            raise ValueError("is empty. Name at least one, or leave it out.")
        return value

    @classmethod
    def of(cls, base: "Options | None" = None, /, **changes: Any) -> Self:
        """The record with ``changes`` over the fields that were given to ``base``, all checked again.

        ``base`` may be of a record that has further fields; they are left out.

        Raises ConfigError: an unknown name with the nearest valid one, or one line per bad value.
        """
        for name in changes:
            if name not in cls.model_fields:
                raise unknown_name("option", name, list(cls.model_fields))
        given = {} if base is None else base.given
        given = {name: value for name, value in given.items() if name in cls.model_fields}
        return cls.checked({**given, **changes})

    @classmethod
    def checked(cls, values: Mapping[str, Any], named: Callable[[str], str] | None = None) -> Self:
        """The record with these values; raises ConfigError with one line per bad value.

        Args:
            named: what a message calls a field; default: its option on the command line.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            faults = {str(fault["loc"][0]): fault for fault in reversed(error.errors())}  # the first of each field
            named = named or cls.flag
            raise ConfigError(*(_sentence(named(name), faults[name]) for name in reversed(faults))) from None

    @classmethod
    def flags(cls, name: str) -> list[str]:
        """The names of a field on the command line; what is true by default has one that begins with ``--no-``."""
        field = cls.model_fields[name]
        extra = field.json_schema_extra
        own = extra.get("flag") if isinstance(extra, dict) else None
        prefix = "--no-" if field.default is True else "--"
        return str(own).split() if own else [prefix + name.replace("_", "-")]

    @classmethod
    def flag(cls, name: str) -> str:
        """The first name of a field on the command line."""
        return cls.flags(name)[0]

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were set, without those left at their defaults."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


def option(default: Any, text: str, *, panel: str | None = None, flag: str | None = None, **bounds: Any) -> Any:
    """A field of a record of options.

    Args:
        default: of Python, of recipe files and of the command line alike; ``...`` for a value that must be given.
        text: one sentence for ``--help`` and the reference page; numbers in it are formatted from their constants.
        panel: heading of ``--help`` under which it stands.
        flag: name on the command line where it differs from the field's (``--no-mirror``); several with spaces between
            (``--output -o``).
        bounds: of pydantic's Field: ge, gt, le, lt.
    """
    return Field(default=default, description=text, json_schema_extra={"panel": panel, "flag": flag}, **bounds)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _switches_as_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _switches_as_text(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_switches_as_text(entry) for entry in value)
    return str(value) if isinstance(value, bool) else value


def _listed(value: Any) -> Any:
    """``"2d, 3d_fullres"`` as its parts, and several such texts too; None and tables as they are."""
    if value is None or isinstance(value, Mapping):
        return value
    parts: list[Any] = []
    for entry in value if isinstance(value, list | tuple) else [value]:
        parts += [part.strip() for part in entry.split(",") if part.strip()] if isinstance(entry, str) else [entry]
    return tuple(parts)


def _numbers(kind: Callable[[str], float]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        numbers: list[Any] = []
        try:
            for entry in value if isinstance(value, list | tuple) else [value]:
                numbers += map(kind, entry.replace("x", ",").split(",")) if isinstance(entry, str) else [entry]
            return tuple(numbers)
        except ValueError:
            raise ValueError("is not a list of numbers. Write for example 64,96,96.") from None

    return read


def _edges(value: tuple[int, ...]) -> tuple[int, ...]:
    if value and (len(value) not in (2, 3) or min(value) < 1):
        raise ValueError("must be 2 or 3 numbers of voxels of at least 1.")
    return value


def _folds(value: Any) -> Any:
    """``"0-2,4"`` as (0, 1, 2, 4)."""
    folds: list[Any] = []
    if isinstance(value, Mapping):
        raise ValueError("is a table, not a list of folds. Write for example 0, 0,2 or 0-4.")
    for part in _listed(value) or []:
        first, dash, last = str(part).partition("-")
        if dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last):
            if int(last) >= MOST_FOLDS:
                raise ValueError(f"has a fold above {MOST_FOLDS - 1}. Write for example 0, 0,2 or 0-4.")
            folds += range(int(first), int(last) + 1)
        elif str(part).isdecimal() or part == "all":
            folds.append(part if part == "all" else int(part))
        else:
            raise ValueError("is neither a fold number nor 'all'. Write for example 0, 0,2 or 0-4.")
    return None if value is None else tuple(folds)


def _numbered(value: Any) -> Iterator[Any]:
    """``"tumour=3, Kidney, left=2"`` as its parts; a comma that follows no number belongs to a name."""
    for entry in value if isinstance(value, list | tuple) else [value]:
        yield from re.findall(r"(.+?=\s*[-+\d.eE]+\s*(?=,|$)|.+),?", entry) if isinstance(entry, str) else [entry]


def _weights(value: Any) -> Any:
    if value is None or isinstance(value, Mapping):
        return value
    weights = {}
    for part in _numbered(value):
        name, _, number = str(part).rpartition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            name = ""
        if not name.strip():
            raise ValueError(f"has the part {value_text(part)}, which is not NAME=NUMBER. Write for example tumour=3.")
    return weights


MOST_FOLDS = 1000
"""Folds that a range such as ``0-4`` may name."""

_BYTES_OF = {"": 1e9, "gb": 1e9, "g": 1e9, "gib": 2.0**30, "mb": 1e6, "m": 1e6, "mib": 2.0**20}
"""Units of memory; a bare number is GB."""


def _gigabytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    number = value.strip().rstrip("GgIiBbMm ")
    unit = value.strip()[len(number) :].strip().lower()
    try:
        found = float(number) * _BYTES_OF[unit] / 1e9
    except (ValueError, KeyError):
        raise ValueError("is not an amount of memory. Write for example 8GB.") from None
    if not 0 < found < math.inf:
        raise ValueError("must be above 0. Write for example 8GB.")
    return found


def _part(value: Any) -> Any:
    if value is None:
        return None
    try:
        number, count = map(int, value.split("/")) if isinstance(value, str) else value
        valid = 1 <= number <= count
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError("is not a part of several. Write for example 2/4.")
    return number, count


Integers = Annotated[tuple[int, ...], BeforeValidator(_numbers(int))]
"""Whole numbers, one per axis; as text ``64,96,96`` or ``64x96x96``."""

PatchSize = Annotated[Integers, AfterValidator(_edges)]
"""Edges in voxels, of two or three axes."""

Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers(float))]
"""Numbers, one per axis; as text ``1,1,2.5``."""

Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Names; as text ``2d,3d_fullres``, and the option may be repeated."""

Folds = Annotated[tuple[int | Literal["all"], ...], BeforeValidator(_folds)]
"""Fold numbers, or "all" for the model of every case; as text ``0``, ``0,2``, ``0-4`` or ``all``."""

NumbersByName = Annotated[dict[str, float], BeforeValidator(_weights)]
"""Numbers by name; as text ``tumour=3,liver=1``."""

Gigabytes = Annotated[float, BeforeValidator(_gigabytes)]
"""GB of 1e9 bytes; as text ``8GB``, ``8`` or ``8192MiB``."""

_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}
Part = Annotated[tuple[int, int], BeforeValidator(_part)]
"""Part i of n, counted from 1; as text ``2/4``."""

LONGEST_VALUE = 200
"""Characters of a value in a message."""
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "path": "a path"}


def value_text(value: Any) -> str:
    """A value as a message shows it; what may be given several times as its parts."""
    if isinstance(value, list | tuple) and value:
        return ", ".join(map(value_text, value))[:LONGEST_VALUE]
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "..."
    return text if len(text) < LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def _sentence(name: str, fault: Any) -> str:
    """One line about a value that a record refuses: which, what is wrong, what to do."""
    kind, value = str(fault["type"]), fault["input"]
    if kind == "missing":
        return f"{name} is missing. It has no default."
    part = f" of {fault['loc'][1]!r}" if len(fault["loc"]) == 2 and isinstance(fault["loc"][1], str) else ""
    where = f"{name}{part} {value_text(value)}"
    if kind in _BOUNDS:
        return f"{where} must be {_BOUNDS[kind]} {next(iter(fault['ctx'].values())):g}."
    if kind == "finite_number":
        return f"{where} must be a finite number."
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        near = get_close_matches(value if isinstance(value, str) else "", choices, n=1, cutoff=0.5)
        return f"{where} is none of: {', '.join(choices)}." + (f" Did you mean {near[0]!r}?" if near else "")
    message = str(fault["msg"]).removeprefix("Value error, ").rstrip(".")
    if kind.split("_")[0] in _KINDS and kind.endswith(("type", "parsing", "from_float")):
        return f"{where} must be {_KINDS[kind.split('_')[0]]}."
    predicate = message.startswith(("is ", "must ", "has ", "needs "))
    return f"{where} {message}." if predicate else f"{where}: {message[:1].lower()}{message[1:]}."
