"""The b-value of a DICOM slice in the vendors' private elements, for files without the public one.

A private element is known by the creator that reserved its block (PS3.5 7.8.1), never by its number alone. Source of
the elements: conformance statements and pydicom's private dictionary.
"""

import math
import struct
from typing import Any

B_VALUES = {
    (0x0019, "SIEMENS MR HEADER"): (0x0C, ""),
    (0x0043, "GEMS_PARM_01"): (0x39, ""),
    (0x2001, "Philips Imaging DD 001"): (0x03, "f"),
    (0x0065, "Image Private Header"): (0x09, "d"),
}
"""By group and creator: the element in the block, and how its number is stored; text where that is empty. The last is
United Imaging's."""
BLOCKS = range(0x10, 0x100)
PRIVATE = tuple(
    group << 16 | low
    for (group, _), (element, _) in B_VALUES.items()
    for block in BLOCKS
    for low in (block, block << 8 | element)
)
"""The tags that can be a creator or one of its b-values."""
_GE_MARK = 100_000  # GE adds 1e9 to some b-values


def private_b_value(header: Any) -> str:
    """The b-value of a header read by pydicom with the tags of ``PRIVATE``, as text; empty where none is known."""
    for (group, creator), (element, stored) in B_VALUES.items():
        for block in BLOCKS:
            if _content(header, group << 16 | block).decode("latin-1").strip(" \0") == creator:
                tag = group << 16 | block << 8 | element
                number = _number(header, tag, stored)
                if math.isfinite(number) and number >= 0:
                    return f"{number % _GE_MARK if group == 0x0043 else number:g}"
    return ""


def _content(header: Any, tag: int) -> bytes:
    value = header.get_item(tag).value if tag in header else None
    return value if isinstance(value, bytes) else b""


def _number(header: Any, tag: int, stored: str) -> float:
    """The first number of an element; NaN for none."""
    content = _content(header, tag)
    try:
        if stored:
            order = "<" if header.get_item(tag).is_little_endian else ">"
            return float(struct.unpack(order + stored, content)[0])
        return float(content.decode("ascii").strip(" \0").split("\\")[0])
    except (ValueError, AttributeError, struct.error):
        return math.nan
