"""Scripts that name the device "cuda" run on the CPU: tensors and modules stay there.

For scripts with ``.cuda()`` written into them, on a machine without a GPU. Not for code that asks
``torch.cuda.is_available()``, which stays false.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_WITHOUT_EFFECT = ("empty_cache", "ipc_collect", "set_device", "synchronize", "reset_peak_memory_stats")


class CudaAsCpu(TorchFunctionMode):
    """Inside, ``cuda`` among the arguments of torch's functions means ``cpu``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        return func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in kwargs.items()})


class _NoDevice:
    """torch.cuda.device of a machine that has none."""

    def __init__(self, device: object = None) -> None:
        self.device = device

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None: ...


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return "cpu"
    return value


def take_cuda_as_cpu() -> None:
    """From here to the end of the process, on this thread, "cuda" means "cpu".

    Raises RuntimeError where a GPU is there to be used.
    """
    if torch.cuda.is_available():
        raise RuntimeError("a GPU can be used here: run without --cuda-as-cpu.")
    for name in _WITHOUT_EFFECT:
        setattr(torch.cuda, name, lambda *arguments, **options: None)
    torch.cuda.current_device = lambda: 0
    torch.cuda.device = _NoDevice  # type: ignore[misc,assignment]
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]
    load = torch.load

    def load_to_cpu(*arguments: Any, **options: Any) -> Any:
        where = options.get("map_location")
        return load(*arguments, **{**options, "map_location": "cpu" if where is None else _on_cpu(where)})

    torch.load = load_to_cpu
    CudaAsCpu().__enter__()
