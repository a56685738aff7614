"""The command that compiles the CPU kernels of a checkout in place: ``python -m medmamba.kernels.build``.

For a checkout that is used without being installed: an installation compiles the same sources with the same flags
(``ext-modules`` in pyproject.toml). The library needs neither torch nor the Python headers.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Kept equal to `extra-compile-args` in pyproject.toml by tests/kernels/test_build.py.
COMPILE_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-pthread")
SOURCES = ("cpu_avx2.cpp", "cpu_avx512.cpp", "cpu_base.cpp", "library.cpp")
LIBRARY_NAME = "_cpu.so"
HERE = Path(__file__).resolve().parent


def find_compiler() -> str | None:
    """The C++ compiler: ``$CXX``, else the first of c++, g++, clang++ on the path; None if there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


def compile_library(target: Path | None = None, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile the kernels into `target` (default: beside this file) and return its path.

    Raises RuntimeError with the compiler's own words when there is no compiler or it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("No C++ compiler found. Install g++ or clang++, or set CXX to the compiler's name.")
    target = target or HERE / LIBRARY_NAME
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.part")
    command = [compiler, *COMPILE_FLAGS, *extra_flags, "-fPIC", "-shared", "-o", str(unfinished)]
    command += [str(HERE / "csrc" / source) for source in SOURCES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise RuntimeError(f"{compiler} could not compile the CPU kernels:\n{done.stderr.strip()}")
    os.replace(unfinished, target)
    return target


if __name__ == "__main__":
    try:
        print(compile_library())
    except RuntimeError as error:
        sys.exit(str(error))
