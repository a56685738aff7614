"""In what kind of numbers a network computes: float32, or half of it where the device is made for that."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(name: str, device: torch.device) -> str:
    """``auto``: bf16 where the device multiplies it faster, else fp16 on GPUs and fp32 on CPUs.

    The scan itself is always fp32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
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
