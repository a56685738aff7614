"""The compiled CPU kernels: a shared library with the C interface of csrc/abi.h, searched for and loaded once."""

import ctypes
import multiprocessing
import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ABI_VERSION = 3
# Why a function of the library failed: `enum MmStatus`.
_STATUS = {
    1: "out of memory for scratch space",
    2: "a row of `routes` is not a permutation of 0..L-1: every route must visit every position once",
    4: "this processor cannot run the chosen instruction set",
}
_int, _int64, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class ScanArguments(ctypes.Structure):
    """``struct MmScan``."""

    _fields_ = (
        *((name, _int64) for name in ("batch", "length", "route_count", "channels", "states")),
        *((name, _int) for name in ("softplus", "merge", "x_per_route", "threads")),
        *((name, _pointer) for name in ("x", "dt", "A", "B", "C", "D", "dt_bias", "routes", "initial_state")),
        *((name, _pointer) for name in ("z", "segments", "y", "plain", "last_state", "saved_states")),
    )


class ScanGradients(ctypes.Structure):
    """``struct MmScanGrad``."""

    _fields_ = (
        ("s", ScanArguments),
        *((name, _pointer) for name in ("dy", "dlast_state")),
        *((name, _pointer) for name in ("dx", "ddt", "dA", "dB", "dC", "dD", "ddt_bias", "dinitial_state", "dz")),
    )


class DeformArguments(ctypes.Structure):
    """``struct MmDeform``."""

    _fields_ = (
        *((name, _int64) for name in ("batch", "groups", "group_channels", "columns")),
        *((name, _int64 * 3) for name in ("image", "output", "kernel", "stride", "padding", "dilation")),
        *((name, _int) for name in ("dimensions", "remove_center", "threads")),
        ("scale", ctypes.c_float),
        *((name, _pointer) for name in ("value", "offset_mask", "out", "dout", "dvalue", "doffset_mask")),
    )


def candidates() -> list[Path]:
    """Where the library may lie: beside this file, or in the installed package that a checkout hides."""
    folders = [Path(__file__).resolve().parent]
    folders += [Path(entry or ".") / "medmamba" / "kernels" for entry in sys.path]
    names = ["_cpu.so", "_cpu.abi3.so", *(f"_cpu{suffix}" for suffix in EXTENSION_SUFFIXES)]
    return [folder / name for folder in dict.fromkeys(folders) for name in dict.fromkeys(names)]


def in_forked_process() -> bool:
    """Whether multiprocessing forked this process, as data loaders do: OpenMP hangs there if the parent has used it."""
    spawned = multiprocessing.get_context("spawn").Process
    return multiprocessing.parent_process() is not None and not isinstance(multiprocessing.current_process(), spawned)


def _share_openmp(library: ctypes.CDLL) -> None:
    """Let the kernels run on the OpenMP threads of torch, see csrc/library.cpp; not in a forked process."""
    if in_forked_process():
        return
    try:
        process = ctypes.CDLL(None)
        functions = [ctypes.cast(process[name], _pointer) for name in ("GOMP_parallel", "omp_get_thread_num")]
    except (AttributeError, OSError, TypeError):  # another OpenMP, or none: the kernels have threads of their own
        return
    library.mm_use_openmp(*functions)


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    refused = []
    for path in candidates():
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
            version = library.mm_abi_version()
        except (OSError, AttributeError) as error:
            refused.append(f"{path}: {error}")
            continue
        if version == ABI_VERSION:
            library.mm_isa_name.restype = ctypes.c_char_p
            _share_openmp(library)
            return library, str(path)
        refused.append(f"{path}: built for interface {version}, this code needs {ABI_VERSION}; build it again")
    if refused:
        return None, f"the compiled library cannot be used ({'; '.join(refused)})"
    return None, (
        "the compiled library was not found: there was no C++ compiler when medmamba was installed. "
        'Install one and run "python -m medmamba.kernels.build", or install medmamba again'
    )


def cpu_library() -> ctypes.CDLL:
    """The loaded library. Raises RuntimeError with the reason if there is none."""
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"The cpp backend cannot run: {reason}.")
    return library


def run(operator: str, function: str, arguments: ctypes.Structure) -> None:
    """Run a function of the library. Raises MemoryError or ValueError that names the operator."""
    status = getattr(cpu_library(), function)(ctypes.byref(arguments))
    if status:
        reason = _STATUS.get(status, f"unknown status {status}")
        raise (MemoryError if status == 1 else ValueError)(f"{operator}: {reason}.")


def missing_reason() -> str | None:
    """Why the compiled kernels cannot run, or None if they can."""
    library, reason = _load()
    return None if library is not None else reason


def library_in_use() -> str:
    """The instruction set (avx512, avx2 or base) and the file of the loaded library."""
    return f"{instruction_set()}, {_load()[1]}"


def instruction_set() -> str:
    """The instruction set in use: avx512, avx2 or base."""
    return cpu_library().mm_isa_name().decode()


def choose_instruction_set(name: str = "") -> None:
    """Use another instruction set (avx512, avx2, base; empty for the best): for tests and benchmarks."""
    if cpu_library().mm_choose_isa(name.encode()) != 0:
        raise ValueError(f"Unknown instruction set {name!r}, or one that this processor lacks: avx512, avx2, base.")
