"""A decorator for functions whose result ``torch.compile`` keeps as a constant of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def compile_constant(function: F) -> F:
    """Mark a function that ``torch.compile`` calls once, with constant arguments, instead of tracing it.

    What ``torch.compiler.assume_constant_result`` does, without importing torch's compiler: 150 MB of a process and two
    seconds that a prediction has no use for.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function
