"""CSV tables: one writer, whose text no spreadsheet takes for a formula, and the reading of such text.

A cell of text that begins with =, +, -, @, a tab or a carriage return gets an apostrophe in front, as people type it
into a spreadsheet; numbers are left alone. Source: OWASP, CSV injection.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from medmamba.disk.atomic import write_text

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan")


def table_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The lines of a CSV table; None is an empty cell."""
    return "".join(",".join(map(_field, row)) + "\n" for row in (head, *rows))


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file; None is an empty cell."""
    write_text(path, table_text(head, rows))


def read_cell(text: str) -> str:
    """The text of a cell as it was before it was written."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _field(cell: object) -> str:
    text = "" if cell is None else str(cell)
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    if any(char in text for char in ',;\t"\r\n'):  # Python's writer leaves a carriage return bare
        text = '"' + text.replace('"', '""') + '"'
    return text
