"""The whole pipeline without what Windows lacks: taken away from Python here, for want of a Windows machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIKE_WINDOWS = """
import errno, fcntl, json, os, signal, sys, multiprocessing
import torch, scipy.ndimage, monai.transforms, nibabel, SimpleITK, blosc2, matplotlib.pyplot, rich.console, typer

def fsync(file, flush=os.fsync, flags=fcntl.fcntl):
    if flags(file, fcntl_getfl) & 3 == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    flush(file)

fcntl_getfl, os.fsync = fcntl.F_GETFL, fsync
for name in ("fork", "pread", "pwrite", "posix_fallocate", "sched_getaffinity", "getuid", "sysconf", "statvfs",
             "register_at_fork", "O_NOFOLLOW", "O_DIRECTORY", "mkfifo", "geteuid", "getpgid", "setsid", "chown"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "pthread_sigmask", "SIGALRM", "SIGTSTP", "SIGQUIT"):
    delattr(signal, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "triton"):
    sys.modules[name] = None
sys.platform = "win32"
from medmamba.cli.main import run
for words in json.loads(sys.argv[1]):
    try:
        run(words)
    except SystemExit as ended:
        if ended.code:
            sys.exit(ended.code)
"""


def test_plan_train_predict_and_evaluate_need_nothing_that_windows_lacks(small_dataset, tmp_path):
    run, masks, images = tmp_path / "run", tmp_path / "masks", small_dataset / "imagesTr"
    steps = ["--fold", "all", "--steps-per-epoch", "1", "--workers", "0"]
    commands = [
        ["plan", small_dataset, "-o", run, "--patch-size", "16,24,16", "--workers", "1"],
        ["train", run, "--steps", "1", *steps],
        ["train", run, "--steps", "2", *steps, "--resume"],
        ["predict", run, images, "-o", masks, "--no-mirror"],
        ["predict", run, images, "-o", masks, "--no-mirror", "--resume"],
        ["evaluate", masks, small_dataset / "labelsTr", "-o", tmp_path / "scores"],
    ]
    line = [sys.executable, "-c", LIKE_WINDOWS, json.dumps(commands, default=str)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "peak memory unknown" in done.stdout + done.stderr
    assert len(list(masks.glob("*.nii.gz"))) == len(list((small_dataset / "labelsTr").iterdir()))
