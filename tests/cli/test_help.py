"""The commands' help: complete, and quick."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from medmamba.cli.main import app

COMMANDS = ("demo", "doctor", "evaluate", "explain", "plan", "predict", "train")


def test_help_names_every_command():
    text = CliRunner().invoke(app, ["--help"]).output
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_answers_in_under_a_second_and_a_half():
    code = "from medmamba.cli.main import run; run(['--help'])"
    best = min(_seconds([sys.executable, "-c", code]) for _ in range(3))
    assert best < 1.5


def _seconds(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started
