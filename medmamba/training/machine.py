"""The machine of a training: resolution of ``auto``, deterministic algorithms, used memory, interrupts."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from medmamba.compute.device import choose_precision, unused_gpu
from medmamba.compute.free_memory import gib, peak_of_process
from medmamba.errors import ConfigError, ResourceError, first_line
from medmamba.kernels.scan.api import SCAN_BACKENDS
from medmamba.networks.scan_backend import scan_backend_of, set_scan_backend
from medmamba.training import distributed
from medmamba.training.config import TrainConfig


def resolved(
    config: TrainConfig, network: nn.Module, device: torch.device, *, cascade: bool, resumed: bool = False
) -> TrainConfig:
    """The recipe with every ``auto`` resolved for this machine; raises ConfigError for what is not possible here.

    The scan backend is set in ``network``. A resumed run whose own backend does not run here takes what ``auto`` is.
    """
    augment = config.augment
    if augment == "auto":
        augment = "device" if device.type == "cuda" and not cascade else "cpu"
    if augment == "device" and cascade:
        raise ConfigError(
            "--augment device: the second stage of a cascade can only be augmented by the data workers. Use cpu."
        )
    try:
        scan_backend = _use_scan_backend(network, config.scan_backend, device)
    except ConfigError:
        if not resumed:
            raise
        scan_backend = _use_scan_backend(network, "auto", device)
    precision = choose_precision(config.precision, device)
    return config.model_copy(update={"augment": augment, "precision": precision, "scan_backend": scan_backend})


def _use_scan_backend(network: nn.Module, name: str, device: torch.device) -> str:
    """Set the backend in the network; returns what runs, or the name itself where nothing is scanned."""
    set_scan_backend(network, name)
    runs = scan_backend_of(network, device)
    if runs == "none":
        return name
    set_scan_backend(network, runs)
    return runs


def machine_line(config: TrainConfig, network: nn.Module, device: torch.device) -> str:
    """Device, precision and scan backend of a resolved recipe, and why the backend is not the preferred one."""
    runs = scan_backend_of(network, device)
    scans = "" if runs == "none" else f", scan backend {runs}"
    preferred = "triton" if device.type == "cuda" else "cpp"
    if runs == "torch" and (reason := SCAN_BACKENDS[preferred].why_not(device.type, torch.float32)) is not None:
        scans += f", slower than {preferred} ({reason})"
    unused = unused_gpu() if device.type == "cpu" else None
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"Device {device}{name}, precision {config.precision}{scans}." + (f" {unused}" if unused else "")


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Equal bytes on every run: deterministic algorithms only, and on the CPU one thread whatever the machine has."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" in str(error):
            raise ResourceError(
                f"--deterministic: this network uses an operation without a deterministic form on this device "
                f"({first_line(error)}). Train on the CPU, or without --deterministic."
            ) from error
        raise
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)


@contextmanager
def gpu_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Settings of cuDNN and cuBLAS for a training on a GPU; those that were are restored.

    cuDNN tries its algorithms and keeps the fastest of each size (not with --deterministic, as it may be another one
    each time). TF32 is allowed for what half precision leaves in float32; --precision fp32 is float32.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, half = torch.backends.cudnn, config.precision != "fp32"
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    cudnn.benchmark, cudnn.allow_tf32 = not config.deterministic, half
    torch.set_float32_matmul_precision("high" if half else "highest")
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before[:2]
        torch.set_float32_matmul_precision(before[2])


def peak_memory_gib(device: torch.device) -> float | None:
    """Largest memory so far: of the GPU, or of this process; None where the system does not say."""
    return gib(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_of_process())


class SecondInterrupt(KeyboardInterrupt):
    """A second Ctrl-C in one step: the step is abandoned, and what it half did must not be saved."""


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Defer Ctrl-C, SIGTERM and SIGHUP to the end of the block, on all ranks at the same time.

    A run that is saved in the middle of a step cannot be resumed bit-exactly.
    A second Ctrl-C does not wait (SecondInterrupt). Signals that nobody handles are left alone, and so are threads,
    which get none.
    """
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
    waiting: list[signal.Signals] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in waiting:
            raise SecondInterrupt
        waiting.append(signal.Signals(number))

    def deliver() -> None:
        if waiting:
            handlers[waiting[0]](waiting[0], None)

    if threading.current_thread() is threading.main_thread():
        for number in signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None):  # Windows has no SIGHUP
            handler = None if number is None else signal.getsignal(number)
            if number is not None and callable(handler):
                handlers[number] = handler
                signal.signal(number, put_off)
    try:
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    except SecondInterrupt:
        raise
    except BaseException:
        deliver()
        raise
    if not distributed.all_true(not waiting):
        deliver()
        if distributed.size() > 1:  # another rank was interrupted
            raise KeyboardInterrupt
