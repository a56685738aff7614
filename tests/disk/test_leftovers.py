"""What killed processes leave behind is removed by the next one of the same kind, and nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_models import make_fold, write_noise

import medmamba
from medmamba.disk import scratch
from medmamba.disk.atomic import replace_folder, write_atomically, write_bytes
from medmamba.disk.leftovers import this_machine
from medmamba.disk.scratch import scratch_folder
from medmamba.inference.folder.run import predict
from medmamba.models.run_folder import RunFolder
from medmamba.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that is gone."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def part(path: Path, pid: int, machine: str = "") -> Path:
    """An unfinished file of a process, as large as what it was to become."""
    left = path.parent / f".{path.name}.{pid}.{machine or this_machine()}0123.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(bytes(1000))
    return left


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_who_writes_a_name_removes_what_dead_processes_of_this_machine_left_of_it(tmp_path, dead):
    gone = part(tmp_path / "page.html", dead)
    kept = [
        part(tmp_path / "page.html", os.getppid()),
        part(tmp_path / "page.html", dead, machine="ffff"),
        part(tmp_path / "other.html", dead),
    ]
    write_bytes(tmp_path / "page.html", b"page")
    assert not gone.exists()
    assert all(path.exists() for path in kept)


def test_a_killed_process_that_had_the_number_of_this_one_is_dead(tmp_path):
    gone = [part(tmp_path / "page.html", os.getpid()), tmp_path / f"medmamba-{os.getpid()}-{this_machine()}01234567"]
    gone[1].mkdir()
    with scratch_folder(tmp_path) as own, write_atomically(tmp_path / "page.html") as file:
        assert [path.exists() for path in gone] == [False, False]
        write_bytes(tmp_path / "page.html", b"another thread's")
        with scratch_folder(tmp_path):
            assert own.is_dir()
        file.write(b"page")
    assert names(tmp_path) == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"page"


def test_a_folder_of_a_dead_process_is_removed_by_the_next_of_that_name(tmp_path, dead):
    left = tmp_path / f".bundle.{dead}.{this_machine()}0123.part"
    (left / "models").mkdir(parents=True)
    (left / "models" / "model.pt").write_bytes(bytes(1000))
    with replace_folder(tmp_path / "bundle") as new:
        (new / "model.pt").write_bytes(b"new")
    assert names(tmp_path) == ["bundle"]


def test_the_name_of_a_leftover_may_be_shortened(tmp_path, dead):
    name = "ä" * 120 + ".nii.gz"  # 247 bytes: the unfinished name keeps 200 of them
    shortened = os.fsencode(name)[:200].decode("utf-8", "ignore")
    left = tmp_path / f".{shortened}.{dead}.{this_machine()}0123.part"
    left.write_bytes(b"")
    write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_temporary_folders_of_killed_processes_are_removed_by_the_next(tmp_path, dead):
    code = f"""
        import os, signal
        from pathlib import Path
        from medmamba.disk.scratch import scratch_folder
        with scratch_folder(Path({str(tmp_path)!r})) as folder:
            (folder / "unpacked.nii").write_bytes(bytes(1000))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT).returncode == -9
    (left,) = names(tmp_path)
    foreign = ["medmamba-notes", f"medmamba-{dead}-ffff01234567", f"medmamba-{os.getppid()}-{this_machine()}01234567"]
    for name in foreign:
        (tmp_path / name).mkdir()
    (tmp_path / f"medmamba-{dead}-{this_machine()}89abcdef").symlink_to(tmp_path / foreign[0])
    with scratch_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not (tmp_path / left).exists()
        assert list(folder.iterdir()) == []
    assert set(names(tmp_path)) == {*foreign, f"medmamba-{dead}-{this_machine()}89abcdef"}


def test_a_temporary_folder_in_use_is_kept_though_its_process_number_means_nothing_here(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "is_in_use", lambda name, pid: False)  # as in another container
    with scratch_folder(tmp_path) as first:
        code = f"""
            from pathlib import Path
            from medmamba.disk import scratch
            scratch.is_in_use = lambda name, pid: False
            with scratch.scratch_folder(Path({str(tmp_path)!r})):
                pass
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)
        assert first.is_dir()
    assert names(tmp_path) == []


def test_training_removes_killed_checkpoints(small_run, tmp_path, dead):
    run = Path(shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("models", ".lock")))
    fold = RunFolder(run).fold("3d_fullres", "all")
    left = [part(fold / "checkpoints" / name, dead) for name in ("last", "best", "prev")]
    left += [part(fold / "metrics.csv", dead), part(run / "report" / "training.html", dead)]
    medmamba.train(run, fold="all", config=TrainConfig(steps=1, steps_per_epoch=1, workers=0))
    assert [path for path in left if path.exists()] == []


def test_prediction_removes_killed_masks_and_records(tiny_run, tmp_path, dead):
    out, images = tmp_path / "out", write_noise(tmp_path / "images", 1, (20, 24, 20))
    left = [part(out / "gone.nii.gz", dead), part(out / "reports" / "0123.json", dead), part(out / "report.json", dead)]
    predict(tiny_run, images, out, folds=[0], mirror=False)
    assert [path for path in left if path.exists()] == []


def test_planning_removes_killed_cases_and_pages(small_dataset, small_run, tmp_path, dead):
    run = Path(shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("models", ".lock")))
    left = [part(run / name, dead) for name in ("preprocessed", "plan.json", "report/dataset.html")]
    medmamba.plan(small_dataset, run, patch_size=(16, 24, 16), batch_size=2)
    assert [path for path in left if path.exists()] == []


def test_a_pilot_removes_no_folder_of_that_name(small_dataset, tmp_path, monkeypatch):
    from medmamba.planning import pilot

    (tmp_path / "run" / "pilot").mkdir(parents=True)
    (tmp_path / "run" / "pilot" / "mine.txt").write_text("mine")

    def try_one(folder, place, name, minutes, held_out):
        make_fold(place / "models" / "3d_fullres" / "fold_0", folder.read_plan(), 0)
        return pilot.Trial(name, 1, minutes, dict.fromkeys(held_out, 0.5))

    monkeypatch.setattr(pilot, "_try", try_one)
    medmamba.plan(small_dataset, tmp_path / "run", patch_size=(16, 24, 16), batch_size=2, pilot=1.0)
    assert (tmp_path / "run" / "pilot" / "mine.txt").read_text() == "mine"
    assert not list((tmp_path / "run").glob("medmamba-*"))
