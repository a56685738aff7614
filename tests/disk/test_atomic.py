"""Whole or not at all: full disks, killed processes, read-only places, two runs at once."""

import ctypes
import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from medmamba.disk import atomic, lock
from medmamba.disk.atomic import (
    replace_folder,
    write_atomically,
    write_bytes,
    write_json,
    write_text,
)
from medmamba.disk.leftovers import remove_leftovers
from medmamba.disk.lock import FolderLock
from medmamba.errors import InputError, ResourceError

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_alone(tmp_path):
    write_json(tmp_path / "new" / "plan.json", {"b": 1, "a": [0.5, None], "é": "ß"})
    assert json.loads((tmp_path / "new" / "plan.json").read_text("utf-8")) == {"b": 1, "a": [0.5, None], "é": "ß"}
    assert names(tmp_path / "new") == ["plan.json"]


def test_json_is_strict():
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json("/nowhere/x.json", {"loss": float("nan")})


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with write_atomically(tmp_path / "a.txt") as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_fails_its_check_never_gets_its_name(tmp_path):
    def check(part: Path) -> None:
        assert part.read_bytes() == b"voxels"
        raise InputError("the mask on disk is not the mask in memory")

    with pytest.raises(InputError, match="not the mask in memory"):
        write_bytes(tmp_path / "mask.nii.gz", b"voxels", verify=check)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_a_failed_write_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch, number):
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        write_text(tmp_path / "mask.nii.gz", "x")
    message = str(caught.value)
    assert str(tmp_path / "mask.nii.gz") in message
    assert "\n" not in message
    assert len(message) < 300
    assert caught.value.exit_code == 4
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("many", [False, True])
def test_a_file_system_without_fsync_is_one_warning(tmp_path, monkeypatch, number, many):
    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        if len(_) == 1:
            raise OSError(number, os.strerror(number))
        return -1

    atomic._warn_of_no_fsync.cache_clear()
    monkeypatch.setattr(atomic.os, "fsync", refuse)
    monkeypatch.setattr(atomic, "_system_call", lambda name: (lambda _: refuse(_, 0)) if name == "syncfs" else None)
    monkeypatch.setattr(atomic, "MANY_FILES", 1 if many else 64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_text(tmp_path / "a", "x")
        with replace_folder(tmp_path / "b") as part:
            for name in "cde":
                (part / name).write_text("x")
    (warning,) = caught
    assert "does not support fsync" in str(warning.message)
    assert (tmp_path / "a").read_text() == "x"
    assert names(tmp_path / "b") == ["c", "d", "e"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_does_not_reach_the_disk_is_an_error(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fails)
    with pytest.raises(ResourceError, match="Cannot write"):
        write_text(tmp_path / "a", "x")


def test_a_full_disk_is_met_for_real(tmp_path):
    """A file-size limit makes write(2) itself fail in the middle, as a full disk does."""
    done = run(
        "import resource, signal, sys\n"
        "from medmamba.disk.atomic import write_bytes\n"
        "from medmamba.errors import ResourceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: write_bytes(sys.argv[1] if len(sys.argv) > 1 else "
        f"{str(tmp_path / 'mask.nii.gz')!r}, bytes(50000))\n"
        "except ResourceError as error: print(error); sys.exit(error.exit_code)\n"
    )
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith(f"Cannot write {tmp_path / 'mask.nii.gz'}: ")
    assert names(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20000


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_full_tmpfs_is_met_for_real(tmp_path):
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=20k", "small", str(tmp_path)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small disk can be mounted by root only")
    try:
        write_bytes(tmp_path / "first", bytes(8000))
        with pytest.raises(ResourceError, match=r"the disk is full. Free some space"):
            write_bytes(tmp_path / "second", bytes(50000))
        assert names(tmp_path) == ["first"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_places_that_cannot_be_written_to_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a file is where a folder is needed"):
        write_text(tmp_path / "file" / "plan.json", "x")
    with pytest.raises(ResourceError, match=r"Cannot write /proc/nothing: no such file or directory"):
        write_text("/proc/nothing/plan.json", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(ResourceError, match="name is too long"):
        write_text(tmp_path / ("x" * 300), "x")


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    (tmp_path / "secret").write_text("untouched")
    (tmp_path / "mask").symlink_to(tmp_path / "secret")
    write_text(tmp_path / "mask", "mask")
    assert (tmp_path / "secret").read_text() == "untouched"
    assert (tmp_path / "mask").read_text() == "mask"
    assert not (tmp_path / "mask").is_symlink()


@pytest.mark.parametrize("point", ["open", "write", "fsync", "verify", "replace", "folder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_process_killed_at_any_point_leaves_the_old_or_the_new_one(tmp_path, kind, point):
    file = (
        f"from medmamba.disk.atomic import write_text; p = {str(tmp_path / 'state')!r}\n"
        "write_text(p, 'old' * 1000); write_text(p, 'new' * 1000)"
    )
    folder = (
        f"from medmamba.disk.atomic import replace_folder; p = {str(tmp_path / 'state')!r}\n"
        "for word in ('old', 'new'):\n"
        "    with replace_folder(p) as part:\n"
        "        (part / 'a').write_text(word * 1000); (part / 'b').write_text(word * 1000)"
    )
    done = run(file if kind == "file" else folder, MEDMAMBA_CRASH_AT=f"{point}:2")
    assert done.returncode == -signal.SIGKILL, done.stderr
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["state"]
    files = [tmp_path / "state"] if kind == "file" else [tmp_path / "state" / "a", tmp_path / "state" / "b"]
    contents = {path.read_text() for path in files}
    assert len(contents) == 1
    assert contents <= {"old" * 1000, "new" * 1000}
    assert (contents == {"new" * 1000}) == (point in ("replace", "folder"))


def test_without_the_exchange_of_the_kernel_a_kill_between_two_renames_gives_the_old_folder_back(tmp_path):
    code = (
        "from medmamba.disk import atomic\n"
        "atomic._exchange = lambda a, b: False\n"
        f"p = {str(tmp_path / 'state')!r}\n"
        "for word in ('old', 'new'):\n"
        "    with atomic.replace_folder(p) as part: (part / 'a').write_text(word)\n"
    )
    done = run(code, MEDMAMBA_CRASH_AT="replace:2")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "state").exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["state"]
    assert (tmp_path / "state" / "a").read_text() == "old"
    assert run(code).returncode == 0
    assert (tmp_path / "state" / "a").read_text() == "new"
    assert names(tmp_path) == ["state"]


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path):
    def write(error: OSError | None) -> None:
        with replace_folder(tmp_path / "last") as part:
            (part / "model").write_text("new" if error else "old")
            if error:
                raise error

    write(None)
    with pytest.raises(ResourceError, match="the disk is full"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    assert (tmp_path / "last" / "model").read_text() == "old"
    assert names(tmp_path) == ["last"]


def test_leftovers_of_the_living_and_of_others_are_kept(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = tmp_path / f".a.{int(gone.stdout)}.00112233.part"
    mine = tmp_path / f".a.{os.getppid()}.00112233.part"
    download = tmp_path / ".film.part"
    for path in (dead, mine, download):
        path.write_text("")
    assert remove_leftovers(tmp_path, shared=True) == []  # it may be alive on the machine that wrote it
    assert remove_leftovers(tmp_path) == [dead]
    assert names(tmp_path) == sorted([mine.name, download.name])


def test_beside_others_only_what_a_dead_process_of_this_machine_left_behind_is_removed(tmp_path, monkeypatch):
    code = "import os; from medmamba.disk.atomic import write_atomically as w\nwith w({!r}) as file: os._exit(0)"
    run(code.format(str(tmp_path / "mask")))
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert remove_leftovers(tmp_path, shared=True) == []
    monkeypatch.undo()
    assert remove_leftovers(tmp_path, shared=True) == [left]


def test_a_second_run_in_one_folder_is_told_who_has_it(tmp_path, monkeypatch):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, time; from medmamba.disk.lock import FolderLock\nwith FolderLock({str(tmp_path)!r}):\n"
            "    print('held', flush=True); sys.stdin.read()",
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        monkeypatch.delattr("time.sleep")  # at once, without waiting
        with (
            pytest.raises(InputError, match=rf"{tmp_path} is in use by process {holder.pid} on '.+'"),
            FolderLock(tmp_path),
        ):
            pass
    finally:
        monkeypatch.undo()
        holder.kill()
        holder.wait()
    with FolderLock(tmp_path):  # a killed process holds nothing
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    with FolderLock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_process(tmp_path):
    code = (
        f"import os, time\nfrom medmamba.disk.lock import FolderLock\nwith FolderLock({str(tmp_path)!r}):\n"
        "    if os.fork() == 0: print(os.getpid(), flush=True)\n    time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(InputError, match="in use by"), FolderLock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with FolderLock(tmp_path):
            pass
        os.kill(worker, 0)  # which still lives
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)


def test_where_the_file_system_has_no_locks_a_file_takes_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_flock", lambda file, **how: False)
    with FolderLock(tmp_path), pytest.raises(InputError, match="in use by process"), FolderLock(tmp_path):
        pass
    assert names(tmp_path) == [".lock"]
    (tmp_path / ".lock.exclusive").write_text("")  # of a run that was killed
    with pytest.raises(InputError, match="in use by another process"), FolderLock(tmp_path):
        pass


def test_a_lock_that_was_made_in_vain_leaves_neither_file_nor_folder(tmp_path):
    with pytest.raises(KeyError), FolderLock(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with FolderLock(tmp_path):
        pass
    with pytest.raises(KeyError), FolderLock(tmp_path):  # there before, so others may wait for it
        raise KeyError
    assert (tmp_path / ".lock").exists()


def test_a_process_that_waited_for_a_removed_lock_takes_a_new_one(tmp_path, monkeypatch):
    flock = lock._flock

    def removed_meanwhile(file, **options):
        monkeypatch.setattr(lock, "_flock", flock)
        taken = flock(file, **options)
        (tmp_path / ".lock").unlink()
        return taken

    monkeypatch.setattr(lock, "_flock", removed_meanwhile)
    with FolderLock(tmp_path), pytest.raises(InputError, match="is in use by process"), FolderLock(tmp_path):
        pass
