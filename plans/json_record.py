"""Frozen records: typed objects that travel between stages, with one canonical JSON text, a hash, and strict reading.

The text of a record depends on its values alone (fixed key order, shortest exact floats, no NaN), so equal records give
equal bytes. Reading reports every fault of a file at once, each with the path of its field.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from medmamba.errors import ConfigError, counted, first_line
from medmamba.options import value_text

Form = TypeVar("Form")
SEAL = "sha256_of_record"
"""Key of the SHA-256 of everything else in a JSON file, which :func:`sealed` adds and every reader verifies."""
LINE_WIDTH = 110
"""Characters: lists and objects that fit into one line of this length are written on one line."""


class Record(BaseModel):
    """Base of everything that the planner reads from or writes to JSON: frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str] = "record"
    """The word for this record in error messages, where it is read from a file of its own."""

    def to_json(self) -> str:
        """Canonical JSON text, ending in a newline."""
        return canonical_json(self.model_dump(mode="json")) + "\n"

    def sealed_json(self) -> str:
        """The same with its own SHA-256 (:func:`sealed`), for a file that nobody edits."""
        return canonical_json(sealed(json.loads(self.to_json()))) + "\n"

    def hash(self) -> str:
        """SHA-256 of the canonical JSON text, as 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record from a file. Raises ConfigError as :meth:`from_json`, and when the file cannot be read."""
        return cls.from_json(_bytes(path, f"Restore this {cls.kind}, or make it again."), source=str(path))

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "") -> Self:
        """Read a record from JSON text; ``source`` (a file name) goes into the message.

        Raises ConfigError that lists all faults, each with the path of its field.
        """
        where = source or f"this {cls.kind}"
        document = read_object(text, where, cls.kind)
        version, known = document.get("schema_version"), cls.model_fields.get("schema_version")
        if known is not None and isinstance(version, int) and version != known.default:
            raise ConfigError(
                f"{where}: schema_version: this {cls.kind} has version {version}, this medmamba reads version "
                f"{known.default}. Plan again with this medmamba, or use the one that wrote it."
            )
        try:
            return cls.model_validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            faults = [f"{where}: {_path(fault['loc'])}: {_sentence(fault)}" for fault in error.errors()]
            summary = f"{where}: {counted(len(faults), 'fault')} in this {cls.kind}; nothing was done."
            raise ConfigError(*faults, summary) from None


def canonical_json(value: Any, indent: int = 0) -> str:
    """JSON with two blanks of indentation per level, where everything that fits into one line stands on one line.

    >>> canonical_json({"patch_size": [40, 56, 40]})
    '{"patch_size": [40, 56, 40]}'
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, (dict, list)) or not value or len(line) + indent <= LINE_WIDTH:
        return line
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [
            f"{pad}{json.dumps(key, ensure_ascii=False)}: {canonical_json(item, indent + 2)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + canonical_json(item, indent + 2) for item in value) + "\n" + " " * indent + "]"


def read_object(text: str | bytes, where: str, kind: str) -> dict[str, Any]:
    """The object of a JSON text; raises ConfigError, which begins with ``where``, for anything but a valid ``kind``."""
    document = _parsed(text, where, kind, _no_constant)
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: a {kind} is a JSON object, got {type(document).__name__}.")
    return document


def read_stored(path: Path, form: type[Form], kind: str, cure: str) -> Form:
    """A JSON file that medmamba wrote, as ``form`` (a dataclass, a record, a table); NaN is a number in it.

    Raises ConfigError of one line, which ends with ``cure``: it cannot be read, is not a ``kind``, or was altered
    (:func:`sealed`).
    """
    document = _parsed(_bytes(path, cure), str(path), kind, float)
    with as_written(path, kind, cure):
        return _adapter(form).validate_python(document)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


@contextmanager
def as_written(where: Path | str, kind: str, cure: str) -> Iterator[None]:
    """Convert any error caused by a stored value of another form into one ConfigError with problem, place and cure."""
    try:
        yield
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"{where}: no {kind}: {_path(fault['loc'])}: {_sentence(fault)} {cure}") from None
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        if "out of memory" in str(error).lower():
            raise
        raise ConfigError(f"{where}: no {kind} ({first_line(error)}). {cure}") from error


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its own SHA-256, so that an altered file is refused."""
    plain = json.loads(json.dumps(document))
    return {**plain, SEAL: _digest(plain)}


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _bytes(path: Path, cure: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}). {cure}") from error


def _parsed(text: str | bytes, where: str, kind: str, constant: Callable[[str], Any]) -> Any:
    try:
        document = strict_json(text, constant)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(f"{where}: not a valid JSON {kind}: {error}. Write it again or restore it.") from None
    except RecursionError:
        raise ConfigError(f"{where}: not a valid JSON {kind}: nested too deeply. Restore it.") from None
    if isinstance(document, dict) and SEAL in document and document.pop(SEAL) != _digest(document):
        raise ConfigError(f"{where}: this {kind} was altered after it was written (SHA-256). Restore the file.")
    return document


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def strict_json(text: str | bytes, constant: Callable[[str], Any] = _no_constant) -> Any:
    """The value of a JSON text; raises ValueError for a key that occurs twice, and by default for NaN and infinity."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {value_text(key)} occurs twice")
    return dict(pairs)


def _path(location: tuple[int | str, ...]) -> str:
    """Field path in the spelling of JSON tools: configurations.3d_fullres.patch_size[0]."""
    text = ""
    for part in location:
        name = json.dumps(part, ensure_ascii=not str(part).isprintable())[1:-1][:60] if isinstance(part, str) else ""
        text += f"[{part}]" if isinstance(part, int) else f".{name}" if text else name
    return text or "(top)"


def _sentence(fault: Any) -> str:
    kind, got = fault["type"], fault.get("input")
    if kind == "missing":
        return "this field is missing."
    if kind == "extra_forbidden":
        return "unknown field; check its spelling or remove it."
    message = fault["msg"].removeprefix("Value error, ")
    shown = json.dumps(got, default=str)
    return f"{message}, got {shown if len(shown) <= 60 else shown[:57] + '...'}."
