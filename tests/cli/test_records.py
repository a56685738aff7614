"""The command line is made of the records: every option is a field, and every field can be set from everywhere."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import typer
from typer.main import get_command

from medmamba.cli.from_record import _is_switch, _kinds, default_of, from_records
from medmamba.cli.main import app
from medmamba.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_RECORD = {"--recipe", "--json", "--help", "--output"}
"""Options that no record holds: the file of the others, the form of the answer, and where a command writes."""

TEXTS = {
    "release": "1.2.3",
    "loss": "ce",
    "labels": "liver=2",
    "licence": "MIT",
    "intended_use": "a test",
    "part": "2/3",
    "folds": "0-2",
    "ema": "0.5",
    "risk": "0.1",
    "patch_size": "32,32,32",
    "machine": "cpu:2",
    "train_hours": "1.5",
    "device_memory_gb": "6GB",
}
"""Values of fields that do not take just anything of their type."""


def commands(group=None, prefix=()):
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


def specs_of(command):
    return getattr(command.callback, "specs", {})


def fields():
    for name, command in commands():
        for parameter, spec in specs_of(command).items():
            for field in spec.fields:
                yield pytest.param(command, parameter, field, id=f"{'-'.join(name)}.{field}")


def sample(name, field):
    """A value of a field as the command line writes it."""
    if name in TEXTS:
        return TEXTS[name]
    kinds = list(_kinds(field.annotation))
    parts = [part for kind in kinds if get_origin(kind) is tuple for part in get_args(kind)]
    for kind in (*kinds, *parts):
        if get_origin(kind) is Literal:
            return str(get_args(kind)[-1])
    if int in kinds or float in kinds:
        bounds = {
            word: getattr(mark, word) for mark in field.metadata for word in ("ge", "gt", "le") if hasattr(mark, word)
        }
        return str(bounds.get("le", max(bounds.get("ge", 0), bounds.get("gt", 0)) + 1))
    if any(get_origin(kind) is dict for kind in kinds):
        return "a=2,b=1"
    return {int: "0-2", float: "1,1,2"}.get(parts[0], "a,b") if parts else "some"


@functools.cache
def recorder(command):
    """The command with a function that keeps what it is called with, and the place where it does."""
    original, seen = inspect.unwrap(command.callback), []

    @functools.wraps(original)
    def keep(**values):
        seen.append(values)
        return {}

    alone = typer.Typer(pretty_exceptions_enable=False)
    alone.command("example")(from_records(keep))
    return get_command(alone), seen


def called(command, *options):
    """What the function of a command would be called with."""
    stand_in, seen = recorder(command)
    words = ["x" for one in command.params if one.param_type_name == "argument"]
    words += [
        word for one in command.params if one.required and one.opts[0].startswith("-") for word in (one.opts[0], "x")
    ]
    stand_in.main(args=[*words, *map(str, options)], standalone_mode=False)
    return seen.pop()


def required(specs, *but):
    """Options that must be given, but for one field."""
    needed = [(spec, name) for spec in specs.values() for name in spec.fields if name not in but]
    return [
        word
        for spec, name in needed
        if spec.fields[name].is_required() or name in ("licence", "intended_use")
        for word in (spec.kind.flag(name), sample(name, spec.fields[name]))
    ]


@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_every_option_is_a_field_and_every_field_an_option(name, command):
    offered = {name: spec for spec in specs_of(command).values() for name in spec.fields}
    shown = {one.name: one for one in command.params if not getattr(one, "hidden", False)}
    assert set(offered) <= set(shown)
    for parameter in shown.values():
        if parameter.param_type_name == "option" and parameter.name not in offered:
            assert set(parameter.opts) & WITHOUT_RECORD, parameter.opts
    for field, spec in offered.items():
        assert shown[field].opts == spec.kind.flags(field)
        assert shown[field].help == spec.fields[field].description
        assert spec.fields[field].description.endswith((".", "1", "2.5", "encoder", "96", '1"')), field
        if not _is_switch(spec.fields[field]):
            assert shown[field].default == default_of(spec.fields[field])


@pytest.mark.parametrize(("command", "parameter", "field"), list(fields()))
def test_a_field_set_on_the_command_line_and_in_a_recipe_is_the_same(command, parameter, field, tmp_path):
    specs = specs_of(command)
    kind, info = specs[parameter].kind, specs[parameter].fields[field]
    option = [kind.flag(field)] if _is_switch(info) else [kind.flag(field), sample(field, info)]
    typed = called(command, *required(specs, field), *option)[parameter]
    assert field in typed.given
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({field: typed.model_dump(mode="json")[field]}))
    read = called(command, *required(specs, field), "--recipe", path)[parameter]
    assert read == typed
    assert read.given == typed.given
    if not _is_switch(info):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{field}: '{option[1]}'\n")
        assert called(command, *required(specs, field), "--recipe", path)[parameter] == typed


def command_of(*name):
    return dict(commands())[name]


def test_the_command_line_wins_over_the_recipe_and_takes_switches_back(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 5\nuse_scan: false\ndeterministic: true\n")
    found = called(command_of("train"), "--recipe", path)
    assert (found["config"].steps, found["options"].use_scan, found["config"].deterministic) == (5, False, True)
    found = called(command_of("train"), "--recipe", path, "--steps", 7, "--scan", "--no-deterministic")
    assert (found["config"].steps, found["options"].use_scan, found["config"].deterministic) == (7, True, False)


def test_every_bad_value_is_reported_with_the_place_where_it_was_given(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: none\nfolds: x\n")
    with pytest.raises(InputError) as error:
        called(command_of("train"), "--recipe", path, "--epochs", "0", "--schedule", "poli")
    assert str(error.value).splitlines() == [
        f"{path}: folds 'x' is neither a fold number nor 'all'. Write for example 0, 0,2 or 0-4.",
        "--epochs '0' must be at least 1.",
        f"{path}: steps 'none' must be a whole number.",
        "--schedule 'poli' is none of: poly, cosine. Did you mean 'poly'?",
    ]


def test_an_unknown_key_of_a_recipe_is_named_with_the_nearest_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("learningrate: 1\n")
    with pytest.raises(InputError, match=r"recipe\.yaml: unknown key 'learningrate'\. Did you mean 'learning_rate'\?"):
        called(command_of("train"), "--recipe", path)
    path.write_text("loss: ce\n")
    with pytest.raises(InputError, match="unknown key 'loss'"):
        called(command_of("pretrain"), "--recipe", path)


def test_the_recipe_of_a_trained_fold_is_a_recipe_file(tmp_path):
    from medmamba.training.config import TrainConfig

    config = TrainConfig(steps=3, class_weights={"tumour": 2.0}, freeze=("stem",), ema=0.9)
    (tmp_path / "train.json").write_text(config.model_dump_json())
    assert called(command_of("train"), "--recipe", tmp_path / "train.json")["config"] == config


def test_a_value_that_must_be_given_is_asked_for():
    with pytest.raises(InputError, match="--family is missing"):
        called(command_of("convert", "weights"))


COMMAND_FILES = sorted({Path(inspect.getsourcefile(inspect.unwrap(command.callback))) for _, command in commands()})


@pytest.mark.parametrize("path", COMMAND_FILES, ids=lambda path: path.stem)
def test_a_command_file_imports_records_and_the_console_only(path):
    """At its top; what a command calls is imported when it runs, so that ``--help`` costs nothing."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("medmamba") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medmamba":
            module = node.module.removeprefix("medmamba.")
            assert (
                module in ("errors", "command_options", "training.config")
                or module.startswith("cli.")
                or module.endswith(".options")
            )


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=str)
def test_a_command_is_no_longer_than_a_screen_and_imports_what_it_calls_when_it_runs(name, command):
    """Arguments in, the library called, its result shown."""
    source = inspect.getsource(inspect.unwrap(command.callback))
    assert len(source.splitlines()) <= 40
    imported = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) if node.module]
    assert [module for module in imported if not module.startswith("medmamba.cli.")]
