"""torch.cuda of GPUs that are pretended: the current device, streams, random states, memory; see pretended_tensors.py.

with pretended_gpus(2) as gpu:
    ...  # torch.cuda.is_available(); gpu.waits, gpu.launches, gpu.operators hold what was done
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from pretended_tensors import DeviceGenerator, Functions, Gpu, Launch, Machine, NotedKernel, Operators, Wait
from triton.runtime.jit import KernelInterface

from medmamba.kernels.deformable import triton_kernels as deformable_kernels
from medmamba.kernels.scan import triton_kernels as scan_kernels
from medmamba.kernels.state_space_duality import triton_kernels as duality_kernels

__all__ = ["Gpu", "Launch", "Wait", "pretended_gpus"]


class _CurrentDevice:
    """``torch.cuda.device``: the device of the launches inside."""

    def __init__(self, device: Any) -> None:
        self.index = device if isinstance(device, int) or device is None else torch.device(device).index

    def __enter__(self) -> None:
        self.before = Machine.current
        if self.index is not None and self.index >= 0:
            Machine.current = self.index

    def __exit__(self, *_error: object) -> None:
        Machine.current = self.before


def _device_of(tensor: torch.Tensor) -> _CurrentDevice:
    return _CurrentDevice(tensor.get_device() if tensor.is_cuda else None)


def _set_device(device: Any) -> None:
    index = device if isinstance(device, int) else torch.device(device).index
    Machine.current = Machine.current if index is None else index


def _index_of(device: Any) -> int:
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return Machine.current if index is None else index


def _properties(device: Any = None) -> SimpleNamespace:
    if _index_of(device) >= Machine.count:
        raise AssertionError("Invalid device id")
    return SimpleNamespace(
        name="Pretended GPU", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132, warp_size=32
    )


class _Stream:
    """A stream, or an event: whatever is done to it is done at once."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        self.device = torch.device("cuda", Machine.current)

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def _nothing(self, *_arguments: Any, **_options: Any) -> None:
        pass

    wait_stream = wait_event = record = wait = _nothing

    def synchronize(self) -> None:
        Machine.gpu.wait("synchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "_Stream") -> float:
        return 1.0


def _pinned(tensor: torch.Tensor, *_arguments: Any) -> torch.Tensor:
    copied = tensor.clone()
    copied.is_pinned = lambda *_: True  # type: ignore[method-assign]
    return copied


def _grouped(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """Lists of tensors by the device and type of the first one's, as C++ does by the device that it sees."""
    groups: dict[Any, Any] = {}
    for index, first in enumerate(lists[0]):
        columns, indices = groups.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for column, values in zip(columns, lists, strict=True):
            column.extend(values[index : index + 1])
        indices.append(index)
    return groups


_run_thread = threading.Thread.run


def _run_with_gpus(thread: threading.Thread) -> None:
    """A thread that sees the pretended GPUs: modes belong to the thread that enters them."""
    with Operators(), Functions():
        _run_thread(thread)


@contextmanager
def pretended_gpus(count: int = 1) -> Iterator[Gpu]:
    """This machine has ``count`` GPUs inside; what they are asked to do is noted."""
    gpu = Gpu()
    Machine.gpu, Machine.count, Machine.current, Machine.random = gpu, count, 0, {}
    Machine.out_of_memory_in = None
    states: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: Machine.current,
        "set_device": _set_device,
        "device": _CurrentDevice,
        "device_of": _device_of,
        "get_device_properties": _properties,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "Pretended GPU",
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (70 * 2**30, 80 * 2**30),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 2**30,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: gpu.wait("synchronize"),
        "_sleep": lambda cycles: None,
        "Stream": _Stream,
        "Event": _Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: _Stream(),
        "get_rng_state": lambda device="cuda": Machine.random.get(
            _index_of(device), torch.random.default_generator.get_state()
        ).clone(),
        "set_rng_state": lambda state, device="cuda": Machine.random.__setitem__(_index_of(device), state.clone()),
        "manual_seed_all": lambda seed: Machine.random.clear(),
    }
    with ExitStack() as stack:
        for name, value in states.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", DeviceGenerator))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pinned))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", return_value=None))
        stack.enter_context(mock.patch.object(threading.Thread, "run", _run_with_gpus))
        for module in (torch.utils._foreach_utils, torch.nn.utils.clip_grad, sys.modules["torch.optim.optimizer"]):
            stack.enter_context(mock.patch.object(module, "_group_tensors_by_device_and_dtype", _grouped))
        for module in (scan_kernels, deformable_kernels, duality_kernels):
            for name in [name for name, value in vars(module).items() if isinstance(value, KernelInterface)]:
                stack.enter_context(mock.patch.object(module, name, NotedKernel(name)))
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(Operators())
        stack.enter_context(Functions())
        yield gpu
