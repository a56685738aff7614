"""A mark for functions that torch.compile need not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def asked_once(function: F) -> F:
    """Mark a function whose answer ``torch.compile`` asks for once and keeps.

    What ``torch.compiler.assume_constant_result`` does, without importing torch's compiler: 150 MB of a process and two
    seconds that a prediction has no use for.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
