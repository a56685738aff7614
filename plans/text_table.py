"""Tables as aligned lines of text that fit the width of a terminal; no number is ever cut."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
GAP = "  "
SHORTEST_NAME = 12
"""Characters that a shortened name keeps at least, the ellipsis among them."""
LONGEST_HEADING = 16
"""Characters of a word in the heading of a number."""
LONGEST_BRACKET = 24
"""Characters of brackets that are written in one line, as of an interval; longer lists are broken."""
JOINING = " x"
JOINING_WORDS = ("to", "of", "/", "±")
"""Words that are written in one line with the next."""


def aligned(rows: Rows, width: int | None = None) -> list[str]:
    """Rows of a table, header first, as lines; every column is as wide as its widest cell.

    Where they do not fit into ``width``, cells are broken at spaces, then names (first column) are shortened with an
    ellipsis, and columns that still do not fit go on below, with the names again.

    >>> aligned([("case", "Dice"), ("a", "0.9 [0.8, 1.0]")])
    ['case  Dice', 'a     0.9 [0.8, 1.0]']
    """
    whole = _lines([[[cell] for cell in row] for row in rows])
    if width is None or max(map(len, whole)) <= width:
        return whole
    names, *columns = zip(*rows, strict=True)
    broken = [_broken(column) for column in columns]
    needed = max((_width(column) for column in broken), default=0)
    longest = max(SHORTEST_NAME, min(width // 3, width - needed - len(GAP)))
    first = [[shortened(name, longest)] for name in names]
    lines: list[str] = []
    for block in _blocks(broken, width - _width(first)):
        lines += ["", *_lines(list(zip(first, *block, strict=True)))]
    return lines[1:]


def _broken(column: Sequence[str]) -> list[list[str]]:
    """Cells as lines, as long as the longest word that stays whole; long words of a heading are shortened."""
    heading, *cells = ([shortened(word, LONGEST_HEADING) for word in _words(column[0])], *map(_words, column[1:]))
    widest = max(len(word) for words in (heading, *cells) for word in words or [""])
    found = []
    for words in (heading, *cells):
        lines = words[:1] or [""]
        for word in words[1:]:
            if len(lines[-1]) + 1 + len(word) <= widest:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        found.append(lines)
    return found


def _words(cell: str) -> list[str]:
    """Where a cell may be broken: at spaces, but not inside short brackets or sizes, nor behind a joining word."""
    words: list[str] = []
    for word in cell.split(" "):
        last = words[-1] if words else ""
        inside = last[:1] == "[" and last[-1:] != "]" and len(last) + len(word) < LONGEST_BRACKET
        if word == "x" or last.endswith(JOINING) or last in JOINING_WORDS or inside:
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def _blocks(columns: Sequence[list[list[str]]], width: int) -> list[list[list[list[str]]]]:
    """Columns in groups of at most ``width`` characters, each with at least one column."""
    blocks: list[list[list[list[str]]]] = [[]]
    left = width
    for column in columns:
        needed = len(GAP) + _width(column)
        if blocks[-1] and needed > left:
            blocks.append([])
            left = width
        blocks[-1].append(column)
        left -= needed
    return blocks


def _width(column: Sequence[Sequence[str]]) -> int:
    return max(len(line) for cell in column for line in cell)


def shortened(name: str, most: int) -> str:
    """A name of at most ``most`` characters; both ends stay, as cases often differ in the last characters only."""
    if len(name) <= most:
        return name
    end = (most - 1) // 2
    return f"{name[: most - 1 - end]}…{name[len(name) - end :]}"


def _lines(rows: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """Rows whose cells are one or more lines."""
    widths = [_width(column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        for number in range(max(map(len, row))):
            cells = (cell[number] if number < len(cell) else "" for cell in row)
            lines.append(GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return lines
