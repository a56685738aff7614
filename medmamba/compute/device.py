"""Device and precision of a network, and detection of exhausted memory."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from medmamba.errors import ConfigError

MEMORY_WORDS = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")
"""In lower case, what libraries say where memory ran out."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the GPU where there is one, under torchrun that of this process."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local % torch.cuda.device_count()) if local else torch.device("cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device {name!r}. Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"Device {name!r} was asked for, but torch sees no GPU. Use --device cpu or auto.")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """``auto``: bf16 where the device multiplies it faster, else fp16 on GPUs and fp32 on CPUs.

    The scan itself is always fp32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_multiplies_bf16() else "fp32"


def casting(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network runs at this precision."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def slow_precision(precision: str, device: torch.device) -> str | None:
    """A line for the user when this machine has no instructions for a precision and imitates it; else None."""
    if device.type == "cuda":
        imitated = precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        imitated = precision == "fp16" or (precision == "bf16" and not cpu_multiplies_bf16())
    if not imitated:
        return None
    return (
        f"The run computes in {precision}, which this {'GPU' if device.type == 'cuda' else 'processor'} only imitates: "
        f"the steps are slow. A precision cannot change on resuming; begin again with --restart --precision fp32, or "
        f"go on where it began."
    )


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bf16: a step is then up to 1.7 times as fast."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the computer."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in MEMORY_WORDS)
    )
