"""The machine of a training: what ``auto`` is on it, deterministic algorithms, and the memory that was used."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from medmamba.compute.device import choose_precision
from medmamba.errors import ConfigError, ResourceError
from medmamba.kernels.scan.api import SCAN_BACKENDS
from medmamba.networks.scan_backend import scan_backend_of, set_scan_backend
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
    return f"Device {device}, precision {config.precision}{scans}."


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
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" in str(error):
            raise ResourceError(
                f"--deterministic: this network uses an operation without a deterministic form on this device "
                f"({str(error).splitlines()[0][:120]}). Train on the CPU, or without --deterministic."
            ) from error
        raise
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
