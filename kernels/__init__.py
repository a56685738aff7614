"""Selective-scan operators: reference, C++ for the CPU, torch operations for everything else, one dispatch.

The derivation, the memory layout and what was tried stand in README.md beside this file.
"""

from medmamba.kernels.backends import BackendChoice, BackendReport, available_backends, backend_report
from medmamba.kernels.mamba_ssm import selective_scan, selective_scan_fn, selective_scan_ref
from medmamba.kernels.scan import routed_scan

__all__ = [
    "BackendChoice",
    "BackendReport",
    "available_backends",
    "backend_report",
    "routed_scan",
    "selective_scan",
    "selective_scan_fn",
    "selective_scan_ref",
]
