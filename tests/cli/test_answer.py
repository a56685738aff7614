"""--json on every command: one object on stdout, words on stderr, errors in the same way."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from medmamba.cli.console import Answer, print_json
from medmamba.cli.main import app
from medmamba.cli.main import run as medmamba


def commands(group=None, prefix=()):
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: str(value))
def test_every_command_has_the_option_and_gives_an_answer(name, command):
    assert any("--json" in parameter.opts for parameter in command.params)
    original = inspect.unwrap(command.callback)
    assert original.__annotations__["return"] in ("Answer", Answer)
    assert "return {" in inspect.getsource(original)


def called(capsys, *arguments):
    code = 0
    try:
        medmamba([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, json.loads(shown.out), shown.err


def test_a_plan_is_told_as_json_and_for_people_on_stderr(capsys, small_run):
    code, found, words = called(capsys, "explain", small_run, "--json")
    assert code == 0
    assert found["plan"] == json.loads((small_run / "plan.json").read_text())
    assert "patch" in words
    medmamba_text = capsys.readouterr()
    assert medmamba_text.out == ""


def test_an_error_is_told_as_json_too(capsys, tmp_path):
    code, found, words = called(capsys, "explain", tmp_path / "nowhere", "--json")
    assert code == 2
    assert found["exit_code"] == 2
    assert "nowhere" in found["error"]
    assert words.startswith("Error: ")


def test_values_of_any_kind_become_json(capsys):
    @dataclass
    class Case:
        path: Path
        dice: float

    value = {1: Case(Path("a/b"), math.nan), "n": np.float32(0.5), "t": (np.int64(3), {4}), "i": math.inf}
    print_json(value)
    assert json.loads(capsys.readouterr().out) == {
        "1": {"path": "a/b", "dice": None},
        "n": 0.5,
        "t": [3, [4]],
        "i": None,
    }


def test_the_shell_completes_commands_and_options():
    def complete(words, index):
        environment = {**os.environ, "_MEDMAMBA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": index}
        code = "import sys; sys.argv = ['medmamba']; from medmamba.cli.main import app; app(prog_name='medmamba')"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout.split()

    assert set(complete("medmamba pre", "1")) == {"pretrain", "predict"}
    assert "--dicom-seg" in complete("medmamba predict --di", "2")
