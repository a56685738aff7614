"""Where a network runs."""

from __future__ import annotations

import os

import torch

from medmamba.errors import ConfigError


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
