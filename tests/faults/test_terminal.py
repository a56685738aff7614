"""A closed terminal, a reader that went away, a full log disk: output may be lost, work and exit codes are not."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medmamba.cli.main import run as medmamba
from medmamba.cli.terminal import _Output, end_on_signals
from medmamba.errors import ResourceError, Terminated
from medmamba.inference.folder import run as folder_run
from medmamba.inference.folder.run import PredictionReport
from medmamba.training import folds

MAIN = [sys.executable, "-c", "from medmamba.cli.main import run; run()"]


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of this process, put back after the test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _text(descriptor):
    return io.TextIOWrapper(io.BufferedWriter(_Output(descriptor, "w", closefd=False)), "ascii", "backslashreplace")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_cannot_be_written_is_left_out(capsys):
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (writer, full):
        with _text(descriptor) as stream:
            for _ in range(3):
                print("ü" * 10_000, file=stream, flush=True)
        os.close(descriptor)


def test_a_pipe_that_does_not_wait_loses_nothing():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = []
    thread = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(reader, 10_000), b"")))
    with _text(writer) as stream:
        stream.write("a" * 60_000)
        timer = threading.Timer(0.2, thread.start)
        timer.start()
        stream.write("b" * 200_000)
    timer.join()
    os.close(writer)
    thread.join()
    os.close(reader)
    assert b"".join(received) == b"a" * 60_000 + b"b" * 200_000


def test_planning_outlives_its_reader_and_a_full_log(small_dataset, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if Path("/dev/full").exists() else os.devnull, "w") as full:
        done = subprocess.run(
            [*MAIN, "plan", small_dataset, "-o", tmp_path / "run", "--patch-size", "16,24,16"],
            stdout=writer,
            stderr=full,
        )
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / "run" / "plan.json").is_file()
    assert (tmp_path / "run" / "report" / "dataset.html").is_file()


# Commands, how they end, and what they say where it can be read.
COMMANDS = [(["info", "plain_unet"], 0), (["explain", "{run}"], 0), (["explain", "{run}", "--json"], 0),
            (["doctor"], 0), (["plan", "--help"], 0), (["--version"], 0), (["explain", "nowhere"], 2),
            (["train", "{run}", "--fold", "17"], 2), (["nonsense"], 2),
            (["report", "nowhere", "--json"], 2)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", [">/dev/full", ">/dev/full 2>/dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "| true"])
@pytest.mark.parametrize(("words", "code"), COMMANDS, ids=lambda value: str(value))
def test_every_command_ends_as_it_would_with_output(words, code, way, small_run):
    words = " ".join(word.format(run=small_run) for word in words)
    line = f"set -o pipefail; '{sys.executable}' -c 'from medmamba.cli.main import run; run()' {words} {way}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_hang_up_unwinds_unless_it_is_ignored_at_the_start():
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
        end_on_signals()
        with pytest.raises(Terminated) as ended:
            signal.raise_signal(number)
        assert ended.value.code == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_on_signals()
    signal.raise_signal(signal.SIGHUP)


def _end_of(words, capsys):
    with pytest.raises(SystemExit) as ended:
        medmamba([str(word) for word in words])
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return ended.value.code, text


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("saved", [False, True])
def test_resuming_is_offered_once_there_is_a_checkpoint(small_run, tiny_run, saved, number, monkeypatch, capsys):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(folds, "train", lambda *_, **__: signal.raise_signal(number))
    code, text = _end_of(["train", tiny_run if saved else small_run], capsys)
    assert code == 128 + number
    assert ("`medmamba train` resumes with --resume" in text) == saved
    assert ("--resume" in text) == saved


@pytest.mark.parametrize("saved", [False, True])
def test_an_error_offers_it_then_too(small_run, tiny_run, saved, monkeypatch, capsys):
    def fail(*_, **__):
        raise ResourceError("Data worker 7 was killed by SIGKILL.")

    monkeypatch.setattr(folds, "train", fail)
    code, text = _end_of(["train", tiny_run if saved else small_run], capsys)
    assert code == 4
    assert ("continue with --resume" in text) == saved
    assert ("--resume" in text) == saved


@pytest.mark.parametrize("finished", [0, 1])
def test_a_prediction_is_resumed_when_a_case_was_finished(tiny_run, tmp_path, finished, monkeypatch, capsys):
    def predict(*_, on_item, **__):
        on_item("predict", finished, 2)
        signal.raise_signal(signal.SIGHUP)
        return PredictionReport(tmp_path)

    monkeypatch.setattr(folder_run, "predict", predict)
    code, text = _end_of(["predict", tiny_run, tmp_path, "-o", tmp_path / "out"], capsys)
    assert code == 129
    assert ("--resume" in text) == bool(finished)


@pytest.mark.slow
def test_a_training_whose_terminal_is_closed_saves_and_is_resumed(small_run, tmp_path):
    import shutil

    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    log = tmp_path / "log"
    with open(log, "w") as file:
        child = subprocess.Popen(
            [*MAIN, "train", run, "--workers", "1", "--steps", "100000", "--network", "plain_unet"],
            stdout=file,
            stderr=file,
        )
        while child.poll() is None and "step " not in log.read_text():
            time.sleep(0.1)
        child.send_signal(signal.SIGHUP)
        assert child.wait(600) == 129, log.read_text()
    assert "`medmamba train` resumes with --resume" in log.read_text()
    assert list(run.glob("models/*/fold_0/checkpoints/last/state.json"))


def test_ctrl_c_before_the_command_begins_is_one_line(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("medmamba.cli.main.app", interrupt)
    assert _end_of(["doctor"], capsys) == (130, "Error: Interrupted. What was written is complete.\n")
