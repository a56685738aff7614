"""The option ``--json`` of every command: one JSON object on stdout, and everything meant for people on stderr.

A command returns what it found as a dictionary; without ``--json`` the dictionary is not shown. An error becomes
``{"error": …, "exit_code": …}``, beside its line on stderr.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Annotated, Any

import typer

Answer = dict[str, Any]
FLAG = "--json"
_OPTION = Annotated[bool, typer.Option(FLAG, help="One JSON object on stdout; messages go to stderr.")]


def answering(command: Callable[..., Answer]) -> Callable[..., None]:
    """The command with the option ``--json``."""

    @functools.wraps(command)
    def run(*arguments: Any, as_json: bool = False, **options: Any) -> None:
        from medmamba.cli.console import console

        if not as_json:
            command(*arguments, **options)
            return
        before, console.stderr = console.stderr, True
        try:
            found = command(*arguments, **options)
        finally:
            console.stderr = before
        show(found)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_OPTION)
    parameters = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=None
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    return run


def show(found: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout."""
    print(json.dumps(plain(found), indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def plain(value: Any) -> Any:
    """A value in JSON's terms: paths as text, records as objects, numbers that are none as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):  # a number of numpy or torch
        return plain(value.item())
    return str(value)
