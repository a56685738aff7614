"""Data workers: killed, stuck or failing ones are named, and no batch is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import signal
import struct
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fold_files import SHORT

from medmamba import pipeline
from medmamba.errors import InputError, ResourceError
from medmamba.preprocessing.store import CaseReader, write_case
from medmamba.training import shared_slot
from medmamba.training import workers as supervision
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.batches import PatchRecipe, PatchSource
from medmamba.training.config import TrainConfig
from medmamba.training.placement import Placement
from medmamba.training.workers import LENT, SupervisedWorkers


def _kill_a_child_worker(number):
    """Send a signal to a data worker of this process: a child that multiprocessing started."""
    import multiprocessing

    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, number)


def _made_again(events):
    return [line for line in events if "made again" in line]


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "was silent for 200 s")])
def test_a_dead_or_stuck_worker_is_named_and_its_batch_made_again(clinic_run, tmp_path, clock, number, words):
    other = tmp_path / "other"
    shutil.copytree(clinic_run, other)
    losses, undisturbed, events = [], [], []
    config = TrainConfig(
        steps=20, workers=1, stall_seconds=200, warmup_steps=0, steps_per_epoch=100, deterministic=True
    )
    clock.fast = lambda: number == signal.SIGSTOP and len(losses) > 1 and not _made_again(events)

    def disturb(report):
        losses.append(report.loss.hex())
        if report.step == 2:
            _kill_a_child_worker(number)

    pipeline.train(clinic_run, fold="all", config=config, on_step=disturb, on_event=events.append)
    assert any(words in line and "case k_" in line for line in _made_again(events)), events
    pipeline.train(other, fold="all", config=config, on_step=lambda r: undisturbed.append(r.loss.hex()))
    assert losses == undisturbed


def test_workers_read_cases_that_this_process_has_read_before(tmp_path):
    rng = np.random.default_rng(0)  # large enough to be read by several threads, if they were allowed
    image, labels = rng.normal(size=(1, 96, 96, 96)).astype(np.float32), rng.integers(0, 3, (96, 96, 96))
    write_case(tmp_path / "c", "c", image, labels, chunk=(96, 96, 96))
    reader = CaseReader(tmp_path / "c")
    assert np.array_equal(reader.read_whole()[0], image)
    events = []
    source = PatchSource([reader], PatchRecipe(augmentation_plan((48, 48, 48)), 2, seed=1, augment="none"))
    with closing(SupervisedWorkers(source, 1, stall_seconds=300, on_fault=events.append)) as stream:
        assert next(stream).image.shape == (2, 1, 48, 48, 48)
    assert not events


@pytest.fixture
def large_source(tmp_path) -> PatchSource:
    """Batches of more than a pipe holds."""
    image, labels = np.random.default_rng(0).normal(size=(1, 48, 48, 48)), np.ones((48, 48, 48), np.int16)
    write_case(tmp_path / "c", "c", image.astype(np.float32), labels, chunk=(48, 48, 48))
    recipe = PatchRecipe(augmentation_plan((40, 40, 40)), 1, seed=1, augment="none")
    return PatchSource([CaseReader(tmp_path / "c")], recipe)


def _assert_same_batches(source, batches):
    assert [batch.step for batch in batches] == list(range(len(batches)))
    for batch in batches:
        _assert_same(source, batch)


def _assert_same(source, batch):
    same = source.batch(batch.step)
    assert torch.equal(batch.image, same.image)
    assert torch.equal(batch.label, same.label)
    assert batch.label.dtype == same.label.dtype == torch.uint8


def _no_shared_memory(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(shared_slot.mmap, "mmap", refuse)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("way", ["memory", "pipe"])
@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "was silent for 200 s")])
def test_a_worker_that_ends_in_the_middle_of_sending_a_batch_costs_no_batch(
    large_source, tmp_path, clock, monkeypatch, number, words, way, count
):
    halves, turns, send, copy = tmp_path / "halves", [], Connection.send, np.copyto

    def half_a_batch(write):
        turns.append(1)  # of this worker
        if len(turns) == 3:
            with contextlib.suppress(FileExistsError), open(tmp_path / "claimed", "x"):  # one worker, only once
                write()
                halves.write_text(str(os.getpid()))
                time.sleep(600)

    def copy_half(target, array):
        if target.dtype == np.float32:
            half_a_batch(lambda: copy(target[..., :20], array[..., :20]))
        copy(target, array)

    def send_half(self, made):
        whole = pickle.dumps(made)
        half_a_batch(lambda: os.write(self.fileno(), struct.pack("!i", len(whole)) + whole[:9000]))
        send(self, made)

    if way == "memory":
        monkeypatch.setattr(shared_slot.np, "copyto", copy_half)  # inherited by the workers
    else:
        _no_shared_memory(monkeypatch)
        monkeypatch.setattr(Connection, "send", send_half)
    events = []
    with closing(SupervisedWorkers(large_source, count, stall_seconds=200, on_fault=events.append)) as stream:
        told = len(events)
        stuck = []
        clock.fast = lambda: number == signal.SIGSTOP and [stream._step] == stuck and len(events) == told
        batches = [next(stream) for _ in range(2 * count)]
        while not halves.exists() or not halves.read_text():
            time.sleep(0.02)
        pid = int(halves.read_text())
        os.kill(pid, number)
        stuck.append(2 * count + [worker._process.pid for worker in stream._workers].index(pid))
        batches += [next(stream) for _ in range(2 * count)]
    _assert_same_batches(large_source, batches)
    assert len(events) == 1 + told == (1 if way == "memory" else 2)
    assert words in events[-1]
    assert f"Batch {stuck[0]} is made again" in events[-1]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_keep_their_values_however_many_are_made_after_them(large_source, workers):
    with closing(SupervisedWorkers(large_source, workers, stall_seconds=300)) as stream:
        _assert_same_batches(large_source, [next(stream) for _ in range(8)])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_that_is_not_copied_keeps_its_values_until_the_next_is_fetched(large_source, workers):
    seen = set()
    with closing(
        SupervisedWorkers(large_source, workers, stall_seconds=300, place=Placement(torch.device("cpu")).place)
    ) as stream:
        for _ in range(6):
            batch = next(stream)
            seen.add(batch.image.data_ptr())
            time.sleep(0.1)  # the worker makes the next ones
            _assert_same(large_source, batch)
    assert len(seen) <= workers * LENT  # they lie in the workers' memory


def test_without_shared_memory_batches_come_through_pipes_which_is_said(large_source, monkeypatch):
    _no_shared_memory(monkeypatch)
    events = []
    with closing(SupervisedWorkers(large_source, 2, stall_seconds=300, on_fault=events.append)) as stream:
        _assert_same_batches(large_source, [next(stream) for _ in range(4)])
    assert len(events) == 1
    assert "No memory can be shared with the data workers" in events[0]
    assert "pipes are used, and are slower" in events[0]


def test_a_batch_larger_than_expected_comes_through_the_pipe(large_source, monkeypatch):
    monkeypatch.setattr(PatchSource, "largest_batch", lambda self: 1000)
    with closing(SupervisedWorkers(large_source, 1, stall_seconds=300)) as stream:
        _assert_same_batches(large_source, [next(stream) for _ in range(3)])


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_shared_memory_has_no_name_that_a_killed_training_could_leave(large_source):
    before = set(os.listdir("/dev/shm"))
    with closing(SupervisedWorkers(large_source, 2, stall_seconds=300)) as stream:
        next(stream)
        assert stream._workers[0]._slots
        mapped = Path(f"/proc/{stream._workers[0]._process.pid}/maps").read_text()
        assert set(os.listdir("/dev/shm")) == before
    assert "/dev/zero (deleted)" in mapped  # what the system calls anonymous memory that is shared


def test_what_fails_where_a_batch_is_placed_is_raised_where_it_is_fetched(large_source):
    def no_room(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    stream = SupervisedWorkers(large_source, 1, stall_seconds=300, place=no_room)
    with closing(stream), pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        next(stream)


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (64, 1, 12), (32, 4, 7), (8, 8, 1)]
)
def test_workers_are_one_less_than_the_cores_of_a_rank_and_at_most_twelve(monkeypatch, cores, ranks, expected):
    monkeypatch.setattr(supervision, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert supervision.automatic_workers() == expected


def test_a_case_that_hangs_every_time_stops_training_and_is_named(clinic_run, tmp_path, clock, monkeypatch):
    read, hung, events = CaseReader.read_patch, tmp_path / "hung", []
    hung.touch()

    def hang(self, *arguments):
        if self.case_id == "k_2":
            with hung.open("a") as file:
                file.write("x")
            time.sleep(600)
        return read(self, *arguments)

    monkeypatch.setattr(CaseReader, "read_patch", hang)  # inherited by the workers
    clock.fast = lambda: hung.stat().st_size > len(_made_again(events))
    config = TrainConfig(steps=200, workers=1, stall_seconds=200, warmup_steps=0, steps_per_epoch=1000)
    with pytest.raises(ResourceError, match=r"was silent for 200 s at case k_2.*second for this batch"):
        pipeline.train(clinic_run, fold="all", config=config, on_event=events.append)
    assert any("case k_2" in line for line in _made_again(events))
    assert 2 * TrainConfig().stall_seconds < 60


def test_an_error_inside_a_worker_names_the_case(clinic_run):
    path = clinic_run / "preprocessed" / "3d_fullres" / "k_1" / "image.b2nd"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="case k_1"):
        pipeline.train(clinic_run, fold="all", config=TrainConfig(steps=20, **{**SHORT, "workers": 1}))


def _source(folder) -> PatchSource:
    write_case(folder / "c", "c", np.ones((1, 8, 8, 8), np.float32), np.ones((8, 8, 8), np.int16), chunk=(8, 8, 8))
    return PatchSource([CaseReader(folder / "c")], PatchRecipe(augmentation_plan((8, 8, 8)), 1, seed=1, augment="none"))


def test_who_was_suspended_itself_does_not_blame_its_workers(tmp_path, monkeypatch):
    now, polls, poll, events = [0.0], [], SupervisedWorkers._poll, []

    def late(self):
        polls.append(self)
        if len(polls) > 4:
            return poll(self)
        now[0] += 3600 if len(polls) == 2 else 1  # Ctrl-Z, and an hour later fg
        return None

    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(SupervisedWorkers, "_poll", late)
    with closing(SupervisedWorkers(_source(tmp_path), 1, stall_seconds=28, on_fault=events.append)) as stream:
        assert next(stream).step == 0
    assert events == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_a_worker_never_gets_the_signals_of_the_terminal(tmp_path):
    with closing(SupervisedWorkers(_source(tmp_path), 1, stall_seconds=300)) as stream:
        status = Path(f"/proc/{stream._workers[0]._process.pid}/status").read_text()
        next(stream)
    blocked = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
    assert all(blocked & 1 << number - 1 for number in (signal.SIGINT, signal.SIGHUP))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGHUP}
