"""Shipped in bundles: the networks' operators, compiled where medmamba is installed, else torch operations.

``OPERATORS`` says which run. Both compute the same; the compiled ones are several times faster.
"""

from importlib import import_module

from medmamba.kernels.deformable.api import deformable_conv, offset_mask_width
from medmamba.kernels.mamba3.api import mamba3_scan
from medmamba.kernels.scan.api import routed_scan

OPERATORS = "torch"
try:
    _installed = import_module("medmamba.kernels")
except ImportError:
    pass
else:
    routed_scan = _installed.routed_scan
    deformable_conv = _installed.deformable_conv
    mamba3_scan = _installed.mamba3_scan
    OPERATORS = "medmamba"

__all__ = ["OPERATORS", "deformable_conv", "mamba3_scan", "offset_mask_width", "routed_scan"]
