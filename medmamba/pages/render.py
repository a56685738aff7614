"""HTML pages from the templates of this folder; every value is escaped, pictures lie inside the page."""

import base64
import io
import json
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmamba.errors import printable

if TYPE_CHECKING:
    from jinja2 import Environment

COLOURS = ("#ffb000", "#648fff", "#dc267f", "#fe6100", "#785ef0", "#21d07a", "#f0e442")
"""Of labels: IBM's palette, distinct with any kind of colour vision, and two more; labels beyond begin again. White is
the truth."""


def render(template: str, **values: Any) -> str:
    """The page of a template with these values."""
    return _environment().get_template(template).render(**values)


def grey(image: NDArray[np.number], percent: float = 0.5) -> NDArray[np.uint8]:
    """Intensities as grey values; ``percent`` of them are black, and ``percent`` white."""
    low, high = np.percentile(image, (percent, 100 - percent))
    return (np.clip((image - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (rows, columns, 3) as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG as an address that a page can hold inside itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def colour_of(number: int) -> str:
    """The colour of a label, counted from 0."""
    return COLOURS[number % len(COLOURS)]


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("medmamba.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"png": data_uri, "number": number, "brief": brief}
    made.globals |= {"colour_of": colour_of}
    return made


def _printable(value: Any) -> Any:
    """Text with control characters written out, as a name in a damaged header may hold them."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def number(value: float, digits: int = 3) -> str:
    """A result: a dash if it is undefined."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.1f}"


def brief(value: Any) -> str:
    """Any value in a few characters: a dash for none, numbers with four digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
