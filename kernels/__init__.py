"""The operators of Mamba networks: selective scan, the scans of Mamba-2 and Mamba-3, deformable convolution (DCNv4).

Each has a reference, torch operations for any device, and Triton kernels for CUDA and ROCm devices; the scan and the
convolution have C++ kernels for the CPU as well. README.md beside this file holds the derivation, the memory layout
and the measurements.
"""

from medmamba.kernels.deformable.api import deformable_conv, offset_mask_width
from medmamba.kernels.mamba3.api import mamba3_scan
from medmamba.kernels.report import BackendChoice, BackendReport, available_backends, backend_report
from medmamba.kernels.scan.api import routed_scan, selective_scan, selective_scan_fn, selective_scan_ref
from medmamba.kernels.state_space_duality.api import ssd_chunked

__all__ = [
    "BackendChoice",
    "BackendReport",
    "available_backends",
    "backend_report",
    "deformable_conv",
    "mamba3_scan",
    "offset_mask_width",
    "routed_scan",
    "selective_scan",
    "selective_scan_fn",
    "selective_scan_ref",
    "ssd_chunked",
]
