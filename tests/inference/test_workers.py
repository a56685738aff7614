"""Worker processes: a death costs one attempt at one case, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from multiprocessing.spawn import get_preparation_data
from pathlib import Path

import pytest
from tiny_models import write_noise

from medmamba import pipeline
from medmamba.compute.processes import starting_workers
from medmamba.errors import InputError
from medmamba.images.cases import find_cases
from medmamba.inference.folder import workers
from medmamba.inference.folder.run import predict_folder
from medmamba.inference.folder.workers import Workers
from medmamba.inference.options import PredictorOptions
from medmamba.inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
CHOICES = PredictorOptions(folds=[0], mirror=False)


@pytest.fixture
def images(tmp_path):
    return write_noise(tmp_path / "images", 4, (40, 44, 40))


def masks_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def test_a_killed_worker_is_named_its_case_tried_again_alone_and_all_others_are_done(
    tiny_run, images, tmp_path, monkeypatch
):
    out, lines, killed = tmp_path / "out", [], []

    def kill(worker):
        os.kill(worker._process.pid, signal.SIGKILL)
        killed.append(worker.case.case_id)

    def ask(worker, case, job, as_before=workers._Worker.ask):
        """Kill every worker that is given patient_2: a worker names its memory only once, so that is no sign of it."""
        as_before(worker, case, job)
        if case.case_id == "patient_2":
            kill(worker)

    with Workers(tiny_run, CHOICES, 2) as pool:

        def listen(line):
            """Kill the first worker of patient_1 when it has begun: the case is its first, so it names its memory."""
            lines.append(line)
            if line.startswith("patient_1") and "of memory, besides" in line and "patient_1" not in killed:
                (worker,) = [w for w in pool._workers if w.case is not None and w.case.case_id == "patient_1"]
                kill(worker)

        monkeypatch.setattr(workers._Worker, "ask", ask)
        report = predict_folder(pool, images, out, on_message=listen)
    assert sorted(killed) == ["patient_1", "patient_2", "patient_2"]
    assert sorted(report.done) == ["patient_0", "patient_1", "patient_3"]
    notes = [finding.text for finding in report.done["patient_1"].findings]
    assert any("second attempt" in note and "SIGKILL" in note for note in notes)
    assert list(report.failed) == ["patient_2"]
    assert "killed by SIGKILL" in report.failed["patient_2"]
    assert "once more, alone" in report.failed["patient_2"]
    assert any(line.startswith("patient_1: worker was killed by SIGKILL") for line in lines)
    assert not list(out.glob("*.part"))
    # and every mask is the one that this process makes
    pipeline.predict(Predictor(tiny_run, CHOICES), images, tmp_path / "here")
    here = masks_of(tmp_path / "here")
    assert masks_of(out) == {name: data for name, data in here.items() if name != "patient_2.nii.gz"}
    assert not multiprocessing.active_children()


def test_a_worker_that_stops_in_the_middle_of_a_message_is_ended(tiny_run, images, monkeypatch):
    def half_a_message(connection, *_):
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
        time.sleep(600)

    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)  # it begins at once
    monkeypatch.setattr(workers, "_work", half_a_message)
    with Workers(tiny_run, CHOICES, 1, stall_minutes=0.5 / 60) as started:
        ((_, fault),) = started._attempts(find_cases(images)[:1], None, print)
    assert "gave no sign" in fault
    assert not multiprocessing.active_children()


def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(tmp_path, images):
    with pytest.raises(InputError, match="not found"):
        pipeline.predict(tmp_path / "no_model", images, tmp_path / "out", workers=1)


@pytest.mark.slow
def test_a_worker_killed_while_it_loads_the_model_is_started_again(tiny_run, images, tmp_path):
    with Workers(tiny_run, CHOICES, 1) as pool:
        os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
        report = predict_folder(pool, images, tmp_path / "out")
    assert len(report.done) == 4


@pytest.mark.slow
def test_a_worker_that_gives_no_sign_is_ended_and_named(tiny_run, images, tmp_path):
    for path in sorted(images.iterdir())[1:]:
        path.unlink()
    with Workers(tiny_run, CHOICES, 1, stall_minutes=3 / 60) as pool:

        def stop(line):
            if "of memory, besides" in line:
                os.kill(pool._workers[0]._process.pid, signal.SIGSTOP)

        pool.provenance()
        report = predict_folder(pool, images, tmp_path / "out", on_message=stop)
    assert "gave no sign" in report.failed["patient_0"]


SCRIPT = """
import sys
import medmamba
print("the script", flush=True)
report = medmamba.predict(*sys.argv[1:4], workers=1, folds=[0], mirror=False)
print(len(report.done))
"""


def test_a_worker_knows_nothing_of_the_main_module(tmp_path, monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.setattr(main, "__file__", str(tmp_path / "script.py"), raising=False)
    assert any(key.startswith("init_main") for key in get_preparation_data("worker"))
    with starting_workers():
        assert not any(key.startswith("init_main") for key in get_preparation_data("worker"))
    assert sys.modules["__main__"] is main


@pytest.mark.slow
def test_a_script_without_a_main_block_is_not_run_again_by_the_workers(tiny_run, images, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", tiny_run, images, tmp_path / "out"]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["the script", "4"], done.stderr
