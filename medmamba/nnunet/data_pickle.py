"""Pickles of plain data, read without running anything: a pickle is a program, and this one machine has no calls.

Numbers, strings, bytes, lists, tuples and dictionaries are built. Of the functions that a pickle may name, those of
:data:`CALLS` have a stand-in here that builds a tensor's description or a number; any other is refused by its name, as
are attributes, sets and classes. Nothing is imported. Work and memory are proportional to the bytes that are read.
"""

import pickletools
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from medmamba.errors import InputError
from medmamba.images.gate import shown

LARGEST_BYTES = 64 * 2**20
"""Of one pickle, tensors excluded: nnU-Net's hold plans and losses, some hundred kB."""
MOST_STEPS = 4_000_000
LARGEST_KEY = 2**53
"""Of whole numbers that are keys: larger ones can be chosen to have equal hashes."""
CURE = "Give a checkpoint as nnU-Net writes it."

Persistent = Callable[[Any], Any]


class Refused(InputError):
    """A pickle that is not plain data."""


@dataclass(frozen=True)
class Named:
    """A function or class that a pickle names; never imported."""

    name: str


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's values are: the key of its storage, offset, shape and strides in values."""

    storage: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class _NumberType:
    """numpy's type of a number, as in "f8"; ``order`` is its byte order."""

    code: str
    order: str = "<"


class _Mark:
    """Where a list of items begins on the stack."""


def read_data_pickle(
    stream: BinaryIO, where: str, *, persistent: Persistent | None = None, names: Collection[str] = ()
) -> Any:
    """The value of the next pickle in ``stream``, which stands behind it afterwards.

    Args:
        where: names the file in errors.
        persistent: turns an identifier (of a tensor's storage) into what stands for it.
        names: functions whose names the value may hold, as :class:`Named`.

    Raises InputError, which names what the pickle wanted, for one that is cut short or holds anything but data.
    """
    machine = _Machine(where, persistent, names)
    steps = 0
    try:
        for code, argument, _ in pickletools.genops(stream):
            steps += 1
            if steps > MOST_STEPS:
                raise Refused(f"{where}: its pickle has more than {MOST_STEPS} steps. {CURE}")
            if code.name == "STOP":
                return machine.pop()
            machine.step(code.name, argument)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, struct.error) as error:
        reason = shown(str(error))[:80] or type(error).__name__
        raise InputError(f"{where}: damaged or cut short (pickle: {reason}). Copy it again.") from None
    raise InputError(f"{where}: damaged or cut short (pickle without an end). Copy it again.")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, where: str, persistent: Persistent | None, names: Collection[str]) -> None:
        self.where, self.persistent, self.names = where, persistent, names
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.ordered: set[int] = set()  # dictionaries whose attributes are ignored, by identity; all live in the memo

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a value is missing")
        return value

    def step(self, name: str, argument: Any) -> None:
        """One operation, by pickletools' name of it."""
        if name in _IGNORED:
            return
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif (method := getattr(self, f"_{name.lower()}", None)) is not None:
            method(argument)
        else:
            raise Refused(f"{self.where}: holds more than data (the pickle's {name}), which is not read. {CURE}")

    def _items(self) -> list[Any]:
        """The values above the last mark."""
        items = []
        while not isinstance(value := self.stack.pop(), _Mark):
            items.append(value)
        return items[::-1]

    def _mark(self, _: Any) -> None:
        self.stack.append(_Mark())

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._items()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._items()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def _tuple2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def _tuple3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def _list(self, _: Any) -> None:
        self.stack.append(self._items())

    def _append(self, _: Any) -> None:
        value = self.pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        items = self._items()
        self._top(list).extend(items)

    def _dict(self, _: Any) -> None:
        items = self._items()
        self.stack.append({})
        self._fill(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._fill([key, value])

    def _setitems(self, _: Any) -> None:
        self._fill(self._items())

    def _fill(self, items: list[Any]) -> None:
        table = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            whole = isinstance(key, int) and abs(key) < LARGEST_KEY
            if not (whole or key is None or isinstance(key, str)):
                raise Refused(f"{self.where}: holds a table with keys of {type(key).__name__}. {CURE}")
            table[key] = value

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} where one is filled")
        return self.stack[-1]

    def _binpersid(self, _: Any) -> None:
        identifier = self.pop()
        if self.persistent is None:
            raise Refused(f"{self.where}: refers to data outside of it. {CURE}")
        self.stack.append(self.persistent(identifier))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(f"{module}.{name}")

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._name(
            f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is no text"
        )

    def _name(self, full: str) -> None:
        if full not in CALLS and full not in STORAGE_TYPES and full not in self.names:
            raise self._wants(full)
        self.stack.append(Named(full))

    def _wants(self, full: str) -> Refused:
        return Refused(f"{self.where}: wants {shown(full)[:80]}, which is not read: no code of a file is run. {CURE}")

    def _reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Named) or function.name not in CALLS:
            raise self._wants(function.name if isinstance(function, Named) else f"a call of {type(function).__name__}")
        if type(arguments) is not tuple:
            raise ValueError("a call without arguments")
        made = CALLS[function.name](*arguments)
        if function.name == "collections.OrderedDict":
            self.ordered.add(id(made))
            self.memo[-1 - len(self.ordered)] = made  # kept, so that its identity stays its own
        self.stack.append(made)

    def _build(self, _: Any) -> None:
        state, thing = self.pop(), self.stack[-1]
        if isinstance(thing, _NumberType):
            thing.order = str(state[1])
        elif id(thing) not in self.ordered:
            raise Refused(f"{self.where}: sets attributes of {type(thing).__name__}, which is not read. {CURE}")


_IGNORED = {"PROTO", "FRAME"}
_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"}
_VALUES |= {"SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES"}
_VALUES |= {"SHORT_BINBYTES", "BINBYTES8"}
_EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _table() -> dict[Any, Any]:
    return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        raise ValueError("a tensor without a shape")
    numbers = [offset, *shape, *strides]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a tensor of impossible shape")
    return StoredTensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise ValueError("a parameter without a tensor")
    return tensor


def _device(kind: Any, *_: Any) -> str:
    return str(kind) if isinstance(kind, str) else "unknown"


def _number_type(code: Any, *_: Any) -> _NumberType:
    if not isinstance(code, str):
        raise ValueError("a number type without a name")
    return _NumberType(code)


def _number(kind: Any, data: Any) -> float | int | bool:
    if not (isinstance(kind, _NumberType) and isinstance(data, bytes) and kind.code in _FORMATS):
        raise ValueError("a number of unknown type")
    order = kind.order if kind.order in "<>" else "<"
    value: float | int | bool = struct.unpack(order + _FORMATS[kind.code], data)[0]
    return value


def _encoded(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes of unknown encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_FORMATS |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "b1": "?"}

CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _table,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.device": _device,
    "numpy.dtype": _number_type,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
    "_codecs.encode": _encoded,
    "__builtin__.bytes": _no_bytes,
}
"""What stands in for the functions that a checkpoint's pickle calls."""

STORAGE_TYPES: Mapping[str, str] = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Float": "float32",
        "Double": "float64",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
    }.items()
}
"""The type of the values in a storage by the name of its class."""
