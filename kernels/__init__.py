"""The operators of Mamba networks: selective scan, state-space duality, deformable convolution.

Reference, C++ for the CPU, torch operations for everything else, one dispatch;
the derivation, the memory layout and what was tried stand in README.md beside this file.
"""

from medmamba.kernels.backends import BackendChoice, BackendReport, available_backends, backend_report
from medmamba.kernels.deformable.api import deformable_conv, offset_mask_width
from medmamba.kernels.scan.api import routed_scan
from medmamba.kernels.scan.mamba_ssm import selective_scan, selective_scan_fn, selective_scan_ref
from medmamba.kernels.state_space_duality.api import ssd_chunked

__all__ = [
    "BackendChoice",
    "BackendReport",
    "available_backends",
    "backend_report",
    "deformable_conv",
    "offset_mask_width",
    "routed_scan",
    "selective_scan",
    "selective_scan_fn",
    "selective_scan_ref",
    "ssd_chunked",
]
