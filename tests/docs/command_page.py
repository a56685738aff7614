"""The page docs/reference/commands.md: every command with its arguments and options, from the commands themselves.

python tests/docs/command_page.py > docs/reference/commands.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo
from typer.main import get_command

from medmamba.cli.main import app

HEAD = """# Commands

Generated from the commands; `medmamba COMMAND --help` prints the same. Every command has `--json` and `--help`.
`--recipe FILE` reads options from a YAML or JSON file, whose keys are the names in the last column; see
[recipes](../how-to/use-a-recipe.md).
"""
OF_ALL = {"--json", "--help", "--recipe"}


def commands_page() -> str:
    """The page as Markdown."""
    group: Any = get_command(app)
    parts = [HEAD]
    for name, command in _commands(group):
        fields = _fields(command)
        parts.append(f"## medmamba {name}\n\n{_text(command.help)}\n\n```text\n{_usage(name, command, fields)}\n```\n")
        shown = [one for one in command.params if not getattr(one, "hidden", False) and not OF_ALL & set(one.opts)]
        rows = [_row(parameter, fields) for parameter in shown]
        parts.append("\n".join(["| | | |", "|---|---|---|", *rows]) + "\n" if rows else "")
    return "\n".join(part for part in parts if part)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _fields(command: Any) -> dict[str, FieldInfo]:
    """The fields of a command's records by name."""
    specs = getattr(command.callback, "specs", {})
    return {name: field for spec in specs.values() for name, field in spec.fields.items()}


def _usage(name: str, command: Any, fields: Mapping[str, FieldInfo]) -> str:
    arguments = [_metavar(one) for one in command.params if one.param_type_name == "argument"]
    needed = [
        f"{one.opts[-1] if len(one.opts[-1]) == 2 else one.opts[0]} {_metavar(one)}"
        for one in command.params
        if one.param_type_name == "option" and (one.required or (one.name in fields and fields[one.name].is_required()))
    ]
    return " ".join(["medmamba", name, *arguments, *needed, "[OPTIONS]"])


def _row(parameter: Any, fields: Mapping[str, FieldInfo]) -> str:
    if parameter.param_type_name == "argument":
        return f"| `{_metavar(parameter)}` | {_text(parameter.help)} | |"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    value = "" if parameter.is_flag else f" {parameter.metavar or _metavar(parameter)}"
    default = ",".join(parameter.default) if isinstance(parameter.default, list) else parameter.default
    shown = "" if default in (None, False, "") else f" Default: {default}."
    key = f"`{parameter.name}`" if parameter.name in fields else ""
    return f"| {names}{value.replace('|', chr(92) + '|')} | {_text(parameter.help)}{shown} | {key} |"


def _metavar(parameter: Any) -> str:
    return str(parameter.name).upper()


def _text(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    print(commands_page(), end="")
