"""Device and precision of a network, and detection of exhausted memory."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from medmamba.errors import ConfigError, first_line

NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"), Path("/dev/nvidiactl"))
"""Files of a machine with an NVIDIA GPU and its driver."""
UNCLEAR_WORDS = (
    "cudnn_status_internal_error",
    "cudnn_status_not_initialized",
    "cublas_status_not_initialized",
    "unable to find an engine",
)
"""In lower case, what cuDNN and cuBLAS say where memory ran out, and elsewhere too."""
NEARLY_FULL = 0.1
"""Fraction of a GPU's memory below which what is free explains :data:`UNCLEAR_WORDS`."""
ADVICE = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
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
        why = unused_gpu() or "Use --device cpu or auto."
        raise ConfigError(f"Device {name!r} was asked for, but torch sees no GPU. {why}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ConfigError(f"Device {name!r} does not exist here. Use cuda:0{f' to cuda:{last}' if last else ''}.")
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


def gpu_cards() -> list[tuple[str, int]]:
    """Name and bytes of memory of each GPU that torch can use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [
        (torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index).total_memory)
        for index in range(count)
    ]


def free_device_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process can still take, those that it holds without using them included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the computer."""
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return any(words in text for words in MEMORY_WORDS) or (
        any(words in text for words in UNCLEAR_WORDS) and _a_gpu_is_nearly_full()
    )


def _a_gpu_is_nearly_full() -> bool:
    if not torch.cuda.is_available():
        return False
    memory = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return any(free < NEARLY_FULL * whole for free, whole in memory)


def fragments_advice(device: torch.device) -> str:
    """What may help after memory ran out on this device: memory that is free in pieces too small to be used."""
    given = [os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")]
    if device.type != "cuda" or any("expandable_segments" in setting for setting in given):
        return ""
    return f" With {ADVICE} in the environment more of the memory can be used."


def unused_gpu() -> str | None:
    """Why torch does not use the GPU of this machine, and the cure, as a sentence; None if it does or there is none."""
    if torch.cuda.is_available() or not any(path.exists() for path in NVIDIA):
        return None
    if torch.version.cuda is None:
        return "This machine has an NVIDIA GPU, but torch was installed without CUDA: install a CUDA build of torch."
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return "This machine has an NVIDIA GPU, but CUDA_VISIBLE_DEVICES hides it: unset it."
    try:
        torch.cuda.init()
        reason = "no device is visible"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).rstrip(".")
    return (
        f"This machine has an NVIDIA GPU that torch cannot use ({reason}): update the driver, or install a torch for "
        f"an older one (this one is for CUDA {torch.version.cuda})."
    )
