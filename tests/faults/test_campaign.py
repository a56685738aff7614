"""Seeded faults while commands work: calls of the system that fail, killed workers, used-up limits, a clock that jumps.

Of every fault: one line and the right exit code or the full result, no half file under a final name, nothing left
behind, and the same command afterwards gives what it gives undisturbed. The short form draws a few points of each kind,
the long one (-m slow) many more; MEDMAMBA_FAULT_SEED draws others.
"""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_noise

from medmamba.cli.main import run as medmamba
from medmamba.disk import atomic
from medmamba.errors import ResourceError
from medmamba.models.checkpoint import read_state
from medmamba.models.run_folder import RunFolder
from medmamba.preprocessing.store import CaseReader, write_case
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.batches import PatchRecipe, PatchSource
from medmamba.training.workers import SupervisedWorkers

SEED = int(os.environ.get("MEDMAMBA_FAULT_SEED", "20"))
ROOT = Path(__file__).resolve().parents[2]
KINDS = ("open", "write", "fsync", "rename")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


class _Failing:
    """A file whose writes are counted, and fail when it is their turn."""

    def __init__(self, file, event: Callable[[str], None]) -> None:
        self._file, self._event = file, event

    def write(self, data):
        self._event("write")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@contextmanager
def failing(kind: str, turn: int, number: int = errno.ENOSPC) -> Iterator[Counter[str]]:
    """The call of that kind whose turn it is fails; gives the count of the calls of each kind."""
    seen: Counter[str] = Counter()

    def event(what: str) -> None:
        seen[what] += 1
        if what == kind and seen[what] == turn:
            raise OSError(number, os.strerror(number))

    def counted(what: str, call: Callable) -> Callable:
        def wrapped(*arguments, **options):
            event(what)
            return call(*arguments, **options)

        return wrapped

    def opened(path, mode="r", *arguments, **options):
        if set(mode) & set("wxa"):
            event("open")
            return _Failing(open(path, mode, *arguments, **options), event)
        return open(path, mode, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "open", opened, raising=False)
        patch.setattr(io, "open", opened)  # of pathlib
        patch.setattr(atomic, "_exchange", lambda first, second: False)  # renames, as on other systems
        patch.setattr(os, "fsync", counted("fsync", os.fsync))
        patch.setattr(os, "replace", counted("rename", os.replace))
        patch.setattr(os, "rename", counted("rename", os.rename))
        yield seen


def call(capsys, *words) -> tuple[int, str]:
    """Exit code and error lines of a command in this process."""
    try:
        medmamba([str(word) for word in words])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    return code, shown.err


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part"))


class Predict:
    """Two masks of a tiny model."""

    def __init__(self, tmp_path: Path, request) -> None:
        self.model = request.getfixturevalue("tiny_run")
        self.images = write_noise(tmp_path / "images", 2, (20, 24, 20))
        self.tmp_path = tmp_path

    def words(self, name):
        return ["predict", self.model, self.images, "-o", self.tmp_path / name, "--fold", "0", "--no-mirror"]

    def start(self, capsys, name):
        return call(capsys, *self.words(name))

    def whole(self, name) -> dict[str, bytes]:
        """The masks; each is whole."""
        import nibabel as nib

        masks = {path.name: path for path in (self.tmp_path / name).glob("*.nii.gz")}
        return {mask: np.asarray(nib.load(path).dataobj).tobytes() for mask, path in masks.items()}


class Train:
    """Two steps of a fold, with a checkpoint after each epoch of one."""

    def __init__(self, tmp_path: Path, request) -> None:
        self.planned = request.getfixturevalue("small_run")
        self.tmp_path = tmp_path

    def start(self, capsys, name):
        run = self.tmp_path / name
        if not run.exists():
            shutil.copytree(self.planned, run, ignore=shutil.ignore_patterns("models", "report", ".lock"))
        options = ["--steps", "2", "--steps-per-epoch", "1", "--workers", "0", "--deterministic", "--patience", "9"]
        begun = (self._last(name) / "state.json").is_file()
        return call(capsys, "train", run, "--fold", "all", *options, *(["--resume"] if begun else []))

    def _last(self, name) -> Path:
        return RunFolder(self.tmp_path / name).fold("3d_fullres", "all") / "checkpoints" / "last"

    def whole(self, name) -> dict[str, bytes]:
        """Hashes of the last checkpoint, if there is one; then it is whole."""
        if not (self._last(name) / "state.json").is_file():
            return {}
        return {file: digest.encode() for file, digest in read_state(self._last(name))["sha256"].items()}


class Plan:
    """A plan of four volumes."""

    def __init__(self, tmp_path: Path, request) -> None:
        self.dataset = request.getfixturevalue("small_dataset")
        self.tmp_path = tmp_path

    def words(self, name):
        return ["plan", self.dataset, "-o", self.tmp_path / name, "--patch-size", "16,24,16", "--workers", "1"]

    def start(self, capsys, name):
        return call(capsys, *self.words(name))

    def whole(self, name) -> dict[str, bytes]:
        """Plan and cases, if there is a plan."""
        run = self.tmp_path / name
        if not (run / "plan.json").is_file():
            return {}
        cases = {str(p.relative_to(run)): p.read_bytes() for p in run.glob("preprocessed/**/*.b2nd")}
        return cases | {"plan": RunFolder(run).read_plan().to_json().encode()}


def _disturb(command, capsys, points: int, kinds: int = len(KINDS)) -> None:
    rng = random.Random(f"{SEED} {type(command).__name__}")
    with failing("none", 0) as counts:
        assert command.start(capsys, "undisturbed")[0] == 0
    undisturbed = command.whole("undisturbed")
    assert undisturbed
    assert set(counts) == set(KINDS), counts
    for kind in rng.sample(KINDS, kinds):
        for turn in sorted(rng.sample(range(1, counts[kind] + 1), min(points, counts[kind]))):
            name = f"{kind}_{turn}"
            with failing(kind, turn, number := rng.choice(ERRORS)):
                code, text = command.start(capsys, name)
            at = f"{type(command).__name__}, {kind} number {turn} of {counts[kind]}, {errno.errorcode[number]}"
            assert code in (0, 1, 2, 4), at  # 0: only the folder's own entry could not be flushed
            assert code == 0 or "Cannot" in text or "failed" in text or os.strerror(number) in text, f"{at}: {text}"
            found = command.whole(name)
            assert all(undisturbed.get(key) == value for key, value in found.items()) or code, at
            assert names(command.tmp_path / name) == [], at
            assert command.start(capsys, name)[0] == 0, at
            assert command.whole(name) == undisturbed, at


@pytest.mark.parametrize("command", [Predict, Train])
def test_a_call_of_the_system_that_fails_loses_nothing(command, tmp_path, request, capsys):
    _disturb(command(tmp_path, request), capsys, 1, kinds=4 if command is Predict else 2)


@pytest.mark.slow
@pytest.mark.parametrize("command", [Predict, Train, Plan])
def test_every_call_of_the_system_that_fails_loses_nothing(command, tmp_path, request, capsys):
    _disturb(command(tmp_path, request), capsys, 12)


KILLED = "import sys; from medmamba.cli.main import run; run(sys.argv[1:])"


def _killed(words, point):
    """The command in a process of its own, killed with SIGKILL at a point of the writing of files."""
    environment = {**os.environ, "MEDMAMBA_CRASH_AT": point, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", KILLED, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)


def _kill_and_repeat(command, capsys, points):
    """After a kill the same command is neither refused nor hindered, and leaves what it leaves undisturbed."""
    assert command.start(capsys, "undisturbed")[0] == 0
    for point in points:
        name = point.replace(":", "_")
        assert _killed(command.words(name), point).returncode == -9, point
        assert command.start(capsys, name)[0] == 0, point
        assert command.whole(name) == command.whole("undisturbed"), point
        assert names(command.tmp_path / name) == [], point


def test_a_prediction_that_was_killed_is_not_in_the_way_of_the_next(tmp_path, request, capsys):
    _kill_and_repeat(Predict(tmp_path, request), capsys, ["verify:2"])


@pytest.mark.slow
@pytest.mark.parametrize("command", [Predict, Plan])
def test_commands_killed_anywhere_are_not_in_the_way_of_the_next(command, tmp_path, request, capsys):
    kinds = ("open", "write", "fsync", "verify", "replace", "folder")
    _kill_and_repeat(command(tmp_path, request), capsys, [f"{kind}:{turn}" for kind in kinds for turn in (1, 2, 3)])


@pytest.fixture
def source(tmp_path) -> PatchSource:
    """Batches of 128 KiB and more, which fill a pipe."""
    image, labels = np.random.default_rng(0).normal(size=(1, 40, 40, 40)), np.ones((40, 40, 40), np.int16)
    write_case(tmp_path / "c", "c", image.astype(np.float32), labels, chunk=(40, 40, 40))
    return PatchSource([CaseReader(tmp_path / "c")], PatchRecipe(augmentation_plan((32, 32, 32)), 1, 1, augment="none"))


def _kill_at_random(source, workers, kills, seed):
    rng, events = random.Random(seed), []
    at = set(rng.sample(range(1, 6 * kills), kills))
    with closing(SupervisedWorkers(source, workers, stall_seconds=600, on_fault=events.append)) as stream:
        for step in range(6 * kills):
            if step in at:
                time.sleep(rng.choice([0, 0.001, 0.02]))
                stream._workers[rng.randrange(workers)]._process.kill()
            batch, same = next(stream), source.batch(step)
            assert torch.equal(batch.image, same.image)
            assert torch.equal(batch.label, same.label)
    assert all("SIGKILL" in line for line in events)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_workers_change_no_batch(source, workers):
    _kill_at_random(source, workers, 3, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_killed_at_many_moments_change_no_batch(source, workers, seed):
    _kill_at_random(source, workers, 4, seed)


def test_no_further_process_is_one_line(source, monkeypatch):
    def refuse():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(ResourceError, match=r"No data worker can be started: Resource temporarily .*--workers"):
        SupervisedWorkers(source, 2, stall_seconds=9)


def test_a_few_open_files_less_end_in_one_line(tmp_path, request, capsys):
    command, before = Predict(tmp_path, request), resource.getrlimit(resource.RLIMIT_NOFILE)
    assert command.start(capsys, "undisturbed")[0] == 0
    for further in range(4):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + further, before[1]))
        try:
            code, text = command.start(capsys, f"out_{further}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert code in (0, 1, 2, 4)
        assert code == 0 or text
        assert command.start(capsys, f"out_{further}")[0] == 0
        assert command.whole(f"out_{further}") == command.whole("undisturbed")


def test_a_clock_that_jumps_changes_nothing(tmp_path, request, capsys, monkeypatch):
    command, rng, clock = Train(tmp_path, request), random.Random(SEED), time.time
    assert command.start(capsys, "undisturbed")[0] == 0
    monkeypatch.setattr(time, "time", lambda: clock() + rng.choice([-1, 1]) * rng.uniform(0, 10**7))
    assert command.start(capsys, "jumping")[0] == 0
    assert command.whole("jumping") == command.whole("undisturbed")


LIMITED = """
import resource, sys
from medmamba.cli.main import run
import torch, nibabel, medmamba.inference.folder.run, medmamba.training.folds
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20, -1))
run(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [1, 8, 32, 128, 512])
@pytest.mark.parametrize("command", ["predict", "train"])
def test_a_limit_of_the_address_space_is_one_line(command, mebibytes, tiny_run, small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("models", ".lock")))
    images = write_noise(tmp_path / "images", 1, (64, 64, 64))
    words = {
        "predict": ["predict", tiny_run, images, "-o", tmp_path / "out", "--no-mirror"],
        "train": ["train", run, "--steps", "1", "--workers", "1"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(mebibytes), *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode in (0, 1, 2, 4), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_training_with_workers_needs_no_shared_memory(small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("models", ".lock")))
    train = "from medmamba.cli.main import run; run()"
    line = 'mount -t tmpfs -o size=16k tmpfs /dev/shm && exec "$@"'
    words = [sys.executable, "-c", train, "train", str(run), "--steps", "2", "--workers", "2"]
    if subprocess.run(["unshare", "-m", "sh", "-c", line, "sh", "true"], capture_output=True).returncode:
        pytest.skip("a small /dev/shm cannot be mounted here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", line, "sh", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["moved", "removed"])
@pytest.mark.parametrize("command", [Predict, Train])
def test_a_folder_that_is_moved_away_is_not_made_anew(command, what, tmp_path, request, capsys, monkeypatch):
    """What was finished before went with it, and nothing is written beside it as if it were all."""
    made, place, aside = command(tmp_path, request), tmp_path / "out", tmp_path / "aside"
    writes, rename = [], os.replace

    def move_after_two(source, target):
        rename(source, target)
        writes.append(target)
        if len(writes) == 2:
            place.rename(aside)
            if what == "removed":
                shutil.rmtree(aside)

    monkeypatch.setattr(os, "replace", move_after_two)
    code, text = made.start(capsys, "out")
    monkeypatch.setattr(os, "replace", rename)
    assert code == 4
    assert "moved or removed while it was in use. What was finished went with it. Move it back." in text
    assert not place.exists()
    if what == "moved":
        aside.rename(place)
    assert made.start(capsys, "out")[0] == 0
    assert made.start(capsys, "undisturbed")[0] == 0
    assert made.whole("out") == made.whole("undisturbed")
