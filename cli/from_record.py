"""Commands made of records: each field of a record of options is an option of the command line.

A command is a function of arguments, written with typer, and of records:

    def train(run: Annotated[Path, typer.Argument()], options: TrainOptions, config: TrainConfig) -> Answer:

Text, default, bounds and heading of an option are those of its field. ``--recipe FILE`` sets the same fields by name,
and the command line wins. ``Annotated[TrainConfig, {"steps": None, "seed": "Seed of the masks."}]`` offers these fields
and no others, with a help text where it differs from the record's.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from medmamba.cli.console import Answer, console, print_json
from medmamba.errors import InputError, InputErrors
from medmamba.options import Options
from medmamba.recipe import recipe_values

JSON = "--json"
_JSON_OPTION = Annotated[bool, typer.Option(JSON, help="One JSON object on stdout; messages go to stderr.")]
_RECIPE_OPTION = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="YAML or JSON file that sets any of these; the command line wins."),
]
_OPPOSITE = "not_"
"""Prefix of the hidden parameter that takes a switch of the recipe back."""
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_VALUES = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


@dataclass(frozen=True)
class OptionSpec:
    """A record among the parameters of a command: its class and the fields that are options."""

    kind: type[Options]
    fields: Mapping[str, FieldInfo]

    def typed(self, context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that the user gave on the command line."""
        found = {}
        for name, field in self.fields.items():
            turns_off = self.kind.flag(name).startswith("--no-")
            if _given(context, name):
                found[name] = not turns_off if _is_switch(field) else values[name]
            elif _given(context, _OPPOSITE + name):
                found[name] = turns_off
        return found


def from_records(command: Callable[..., Answer]) -> Callable[..., None]:
    """The command with ``--json`` and one option per field of the records in its ``specs``."""
    signature = inspect.signature(command, eval_str=True)
    specs = {name: spec for name, one in signature.parameters.items() if (spec := _spec_of(one.annotation)) is not None}

    @functools.wraps(command)
    def run(*, context: typer.Context, as_json: bool, recipe: Path | None = None, **values: Any) -> None:
        records = _records(specs, context, recipe, values)
        arguments = {name: value for name, value in values.items() if name in signature.parameters}
        before, console.stderr = console.stderr, as_json
        try:
            answer = command(**arguments, **records)
        finally:
            console.stderr = before
        if as_json:
            print_json(answer)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *(one.replace(kind=keyword) for name, one in signature.parameters.items() if name not in specs),
        *(one for spec in specs.values() for name in spec.fields for one in _parameters(spec, name)),
    ]
    if specs:
        parameters.append(inspect.Parameter("recipe", keyword, default=None, annotation=_RECIPE_OPTION))
    parameters.append(inspect.Parameter("as_json", keyword, default=False, annotation=_JSON_OPTION))
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    run.specs = specs  # type: ignore[attr-defined]
    return run


def _records(
    specs: Mapping[str, OptionSpec], context: typer.Context, recipe: Path | None, values: Mapping[str, Any]
) -> dict[str, Options]:
    """The records of a command by parameter, from the recipe file and the command line, which wins."""
    known = [name for spec in specs.values() for name in spec.fields]
    read = {} if recipe is None else recipe_values(recipe, known)
    records: dict[str, Options] = {}
    problems: list[str] = []
    for parameter, spec in specs.items():
        typed = spec.typed(context, values)
        chosen = {name: value for name, value in read.items() if name in spec.fields} | typed

        def named(name: str, spec: OptionSpec = spec, typed: Mapping[str, Any] = typed) -> str:
            return f"{recipe}: {name}" if name in read and name not in typed else spec.kind.flag(name)

        try:
            records[parameter] = spec.kind.checked(chosen, named)
        except InputError as error:
            problems += error.args
    if problems:
        raise InputErrors(*problems)
    return records


def _spec_of(annotation: Any) -> OptionSpec | None:
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        return None
    texts = marks[0] if marks else dict.fromkeys(kind.model_fields)
    fields = {name: copy(kind.model_fields[name]) for name in texts}
    for name, field in fields.items():
        field.description = texts[name] or field.description
    return OptionSpec(kind, fields)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parameters(spec: OptionSpec, name: str) -> Iterator[inspect.Parameter]:
    """The option of a field, and of a switch also the hidden one that takes it back."""
    field, flags = spec.fields[name], spec.kind.flags(name)
    extra = field.json_schema_extra
    panel: Any = extra.get("panel") if isinstance(extra, dict) else None
    keyword = inspect.Parameter.KEYWORD_ONLY
    if _is_switch(field):
        back = "--" + flags[0].removeprefix("--no-") if flags[0].startswith("--no-") else "--no-" + flags[0][2:]
        shown = typer.Option(*flags, help=field.description, rich_help_panel=panel)
        hidden = typer.Option(back, hidden=True)
        yield inspect.Parameter(name, keyword, default=False, annotation=Annotated[bool, shown])
        yield inspect.Parameter(_OPPOSITE + name, keyword, default=False, annotation=Annotated[bool, hidden])
        return
    kinds, choices = list(_kinds(field.annotation)), _choices(field)
    several = any(get_origin(kind) is dict or ... in get_args(kind) for kind in kinds)
    kind: Any = Path if Path in kinds else str
    shown = typer.Option(
        *flags,
        help=field.description,
        rich_help_panel=panel,
        metavar=value_of(field),
        autocompletion=(lambda incomplete: [one for one in choices if one.startswith(incomplete)]) if choices else None,
    )
    annotation: Any = list[kind] | None if several else kind | None
    yield inspect.Parameter(name, keyword, default=default_of(field), annotation=Annotated[annotation, shown])


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of a union, without their own annotations."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (None, Literal, tuple, dict):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _kinds(part)


def _is_switch(field: FieldInfo) -> bool:
    return bool in _kinds(field.annotation)


def _choices(field: FieldInfo) -> list[str]:
    """The values of a Literal, or of a tuple of them."""
    kinds = [get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in _kinds(field.annotation)]
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def value_of(field: FieldInfo) -> str:
    """What stands for the value of an option in ``--help``: its choices, or its type and bounds."""
    required = ["(required)"] if field.is_required() else []
    if choices := _choices(field):
        return " ".join(["|".join(choices), *required])
    name = next((_VALUES[kind] for kind in _kinds(field.annotation) if kind in _VALUES), "TEXT")
    bounds = [
        f"{sign}{getattr(mark, word):g}"
        for mark in field.metadata
        for word, sign in _BOUNDS.items()
        if hasattr(mark, word)
    ]
    return " ".join([name, *bounds, *required])


def default_of(field: FieldInfo) -> Any:
    """The default of an option as it would be written on the command line; None where there is nothing to show."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    if value in (None, (), {}):
        return None
    if isinstance(value, tuple):
        return [str(part) for part in value]
    return value if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)
