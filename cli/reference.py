"""The page docs/reference/commands.md: every command with its arguments and options, from the commands themselves.

python -m medmamba.cli.reference > docs/reference/commands.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

HEAD = """# Commands

Written from the commands themselves; `medmamba COMMAND --help` says the same. Every command has `--json` and `--help`.
"""
OF_ALL = {"--json", "--help"}


def commands_page() -> str:
    """The page as Markdown."""
    from typer.main import get_command

    from medmamba.cli.main import app

    group: Any = get_command(app)
    parts = [HEAD]
    for name, command in _commands(group):
        parts.append(f"## medmamba {name}\n\n{_text(command.help)}\n\n```text\n{_usage(name, command)}\n```\n")
        rows = [_row(parameter) for parameter in command.params if not OF_ALL & set(parameter.opts)]
        parts.append("\n".join(["| | |", "|---|---|", *rows]) + "\n" if rows else "")
    return "\n".join(part for part in parts if part)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _usage(name: str, command: Any) -> str:
    arguments = [_metavar(one) for one in command.params if one.param_type_name == "argument"]
    needed = [
        f"{one.opts[-1] if len(one.opts[-1]) == 2 else one.opts[0]} {_value(one)}"
        for one in command.params
        if one.param_type_name == "option" and one.required
    ]
    return " ".join(["medmamba", name, *arguments, *needed, "[OPTIONS]"])


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"| `{_metavar(parameter)}` | {_text(parameter.help)} |"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    value = "" if parameter.is_flag else f" {_value(parameter)}"
    default = parameter.default
    shown = "" if callable(default) or default in (None, False, "", (), []) else f" Default: {default}."
    return f"| {names}{value} | {_text(parameter.help)}{shown} |"


def _metavar(parameter: Any) -> str:
    return str(parameter.name).upper()


def _value(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def _text(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(commands_page(), end="")
