"""The commands' help: complete, and quick."""

from __future__ import annotations

import resource
import subprocess
import sys

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


def test_help_costs_less_than_a_second_and_a_half():
    code = "from medmamba.cli.main import run; run(['--help'])"
    best = min(_processor_seconds([sys.executable, "-c", code]) for _ in range(3))
    assert best < 1.5


def _processor_seconds(command):
    """Of the process and not of the clock, which a busy machine stretches."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_missing_run_is_reported_before_torch_is_imported(command, tmp_path):
    code = (
        "import sys\nfrom medmamba.cli.main import run\n"
        f"try:\n    run(['{command}', {str(tmp_path / 'none')!r}])\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "none" in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
