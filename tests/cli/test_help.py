"""The commands' help: complete, and quick."""

from __future__ import annotations

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


def test_help_costs_less_than_half_a_second():
    """On an idle core: counted in modules, because seconds depend on what the machine does besides."""
    code = "import sys\nfrom medmamba.cli.main import run\ntry: run(['--help'])\nfinally: print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 600  # 470; torch brings a thousand


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
