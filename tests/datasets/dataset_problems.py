"""What a dataset is refused with, in tests of all layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medmamba.errors import InputError


def problems_of(action: Callable[..., object], folder: Path) -> str:
    """The lines of the error, each a short sentence, without the path of the folder."""
    with pytest.raises(InputError) as caught:
        action(folder)
    message = str(caught.value).replace(f"{folder}/", "").replace(str(folder), "DATA")
    for line in message.splitlines():
        assert len(line) <= 300, line
        assert line.endswith("."), line
    assert caught.value.exit_code == 2
    return message
