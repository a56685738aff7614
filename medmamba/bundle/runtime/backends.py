"""Inside a bundle the copied operators run as torch operations; the compiled ones come with an installed medmamba."""

from __future__ import annotations

import torch


def choose_backend(backend: str, device: str, dtype: torch.dtype) -> str:
    """The torch backend, or the reference if asked for; runs on any device and in any precision."""
    if backend in ("auto", "torch"):
        return "torch"
    if backend == "reference":
        return backend
    raise ValueError(f"Backend {backend!r} is not in a bundle. Available: auto, torch, reference.")
