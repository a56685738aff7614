"""The losses by name: where the function of each is. Imports no torch, so that the command line can list them.

A further loss is one function of :class:`medmamba.training.losses.LossInputs` and one row here; a function in somebody
else's package needs no row: its name is ``package.module:function``.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from medmamba.errors import ConfigError, first_line, unknown_name

LOSSES = {
    "dice_ce": "medmamba.training.losses:dice_ce",
    "dice_focal": "medmamba.training.losses:dice_focal",
    "dice_topk": "medmamba.training.losses:dice_topk",
    "ce": "medmamba.training.losses:cross_entropy",
    "dice": "medmamba.training.losses:soft_dice",
}
"""Name on the command line and in recipes -> module:function."""

LossFunction = Callable[[Any], Any]
"""A function of one LossInputs that returns a scalar tensor; with several training processes, sums over voxels use
:func:`medmamba.training.distributed.total`."""


def is_loss_name(name: str) -> bool:
    """Whether a recipe may hold this name: one of :data:`LOSSES`, or module:function."""
    module, colon, function = name.partition(":")
    return name in LOSSES or bool(colon and module and function)


def name_of_loss(loss: str | LossFunction) -> str:
    """The name that a recipe stores for a loss: its own, or module:function of a function."""
    if isinstance(loss, str):
        return loss
    module, name = getattr(loss, "__module__", None) or "__main__", getattr(loss, "__qualname__", None)
    if not name:
        raise ConfigError(f"loss {loss!r} has no name to be recorded by. Give a function, for example def my_loss(x).")
    return next((known for known, place in LOSSES.items() if place == f"{module}:{name}"), f"{module}:{name}")


def find_loss(name: str) -> LossFunction:
    """The function of a loss's name.

    Raises ConfigError, in one line, for an unknown name and for a module:function that cannot be imported.
    """
    if not is_loss_name(name):
        raise unknown_name("loss", name, list(LOSSES))
    module, _, function = LOSSES.get(name, name).partition(":")
    if module == "__main__" or "<" in function:
        raise ConfigError(
            f"loss {name!r} is a function of a script, which no other process can import. Give the function again from "
            f"Python, medmamba.train(..., loss=function), or move it into a module."
        )
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever somebody else's module raises while it is imported
        raise ConfigError(
            f"loss {name!r}: cannot be imported ({first_line(error)}). Install its package in the "
            f"environment of {sys.executable}, or use one of: {', '.join(LOSSES)}."
        ) from error
    if not callable(found):
        raise ConfigError(f"loss {name!r} is not a function. Use module:function, or one of: {', '.join(LOSSES)}.")
    return found
