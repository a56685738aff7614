"""Shipped in bundles in place of medmamba.kernels.availability: the copied operators run as torch operations."""

import torch


def why_not_cpp(device: str, dtype: torch.dtype) -> str:
    """Why the C++ kernels cannot run; those of an installed medmamba come through ``operators.py``."""
    return "a bundle holds no compiled kernels; install medmamba"


why_not_triton = why_not_cpp


def announce_fallback(device: str, reason: str) -> None:
    """Nothing: ``OPERATORS`` says that torch operations run."""
