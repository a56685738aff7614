"""Processes that torchrun starts share a folder, and what one of them loses is not lost to the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import write_noise

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "from medmamba.cli.main import run; run()"
pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path):
    return write_noise(tmp_path / "images", 6, (24, 28, 24))


def start(run, images, out, *options, processes=2):
    """`medmamba predict` in as many processes; its words arrive at ``stdout``."""
    script = out.parent / "medmamba_main.py"
    script.write_text(COMMAND + "\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = ["predict", run, images, "-o", out, "--fold", "0", "--no-mirror", *options]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def masks_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def leftovers(folder):
    return [path.name for path in folder.rglob("*.part")]


def test_two_processes_share_the_cases_and_a_poisoned_one_costs_only_itself(tiny_run, images, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    child = start(tiny_run, images, alone, processes=1)
    assert child.wait(600) == 0, child.stdout.read()
    child = start(tiny_run, images, shared)
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 0, output
    assert output.count("3 masks and report.json") == 2
    assert masks_of(shared) == masks_of(alone)
    assert report_of(shared)["summary"] == {"cases": 6, "done": 6, "failed": 0, "waiting": 0, "incomplete": 0}

    poisoned = images / "patient_1.nii.gz"  # the first of the second process, which has done its share early
    poisoned.write_bytes(poisoned.read_bytes()[:-400])
    child = start(tiny_run, images, shared)
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 1, output
    assert "2 ok, 1 failed: patient_1" in output
    assert "cut off" in output
    assert "3 masks and report.json" in output
    expected = masks_of(alone)
    del expected["patient_1.nii.gz"]
    assert masks_of(shared) == expected
    assert report_of(shared)["summary"] == {"cases": 6, "done": 5, "failed": 1, "waiting": 0, "incomplete": 0}
    assert list(report_of(shared)["failed"]) == ["patient_1"]


def test_a_process_that_fails_early_does_not_end_a_slow_one(tiny_run, images, tmp_path):
    """The failing process has one case, the other is stopped until long after that one has failed."""
    for path in sorted(images.iterdir())[3:]:
        path.unlink()
    (images / "patient_1.nii.gz").write_bytes(b"nothing")
    out = tmp_path / "out"
    child = start(tiny_run, images, out)
    slow = rank_of(child, 0)
    os.kill(slow, signal.SIGSTOP)
    record = wait_until(lambda: any("failed" in path.read_text() for path in (out / "reports").glob("*.json")), child)
    time.sleep(5)
    assert record
    assert child.poll() is None
    os.kill(slow, signal.SIGCONT)
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 1, output
    assert set(masks_of(out)) == {"patient_0.nii.gz", "patient_2.nii.gz"}
    assert report_of(out)["summary"] == {"cases": 3, "done": 2, "failed": 1, "waiting": 0, "incomplete": 0}


def test_a_killed_process_leaves_a_folder_that_goes_on(tiny_run, images, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "out"
    child = start(tiny_run, images, alone, processes=1)
    assert child.wait(600) == 0, child.stdout.read()
    child = start(tiny_run, images, out)
    victim = rank_of(child, 1)
    assert wait_until(lambda: list((out / "reports").glob("*.json")), child)  # a mask alone is made again
    os.kill(victim, signal.SIGKILL)
    output, _ = child.communicate(timeout=600)
    assert child.returncode != 0, output
    child = start(tiny_run, images, out, "--resume")
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 0, output
    assert "kept from before" in output
    assert masks_of(out) == masks_of(alone)
    assert report_of(out)["summary"] == {"cases": 6, "done": 6, "failed": 0, "waiting": 0, "incomplete": 0}
    assert not leftovers(out)


def wait_until(condition, child, seconds=600):
    """Whether it comes true while the processes live."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and child.poll() is None:
        if found := condition():
            return found
        time.sleep(0.02)
    return False


def rank_of(child, number):
    """Process number of a rank."""

    def found():
        pids = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        for pid in pids:
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"RANK={number}".encode() in variables:
                return int(pid)
        return None

    return wait_until(found, child)
