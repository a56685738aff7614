"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: nothing is read or written out of bounds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scan_cases import ROOT

from medmamba.kernels import build


@pytest.mark.slow
@pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")
def test_the_kernels_are_clean_under_the_sanitizers(tmp_path):
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    sanitized = build.compile_library(tmp_path / "_cpu.so", flags)
    compiler = str(build.find_compiler())
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path).is_file() for path in runtimes):
        pytest.skip("the sanitizers' run-time libraries are not installed")
    here = Path(__file__).parent
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they allocate
        "PYTHONPATH": f"{ROOT}:{here}",
    }
    command = [sys.executable, str(here / "sanitized_scan.py"), str(sanitized)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert done.stdout.startswith("clean")
