"""What this machine can run, as text lines."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

from medmamba.errors import MedmambaError, counted

PACKAGES = ("torch", "monai", "triton", "nibabel", "SimpleITK", "batchgenerators", "numpy", "blosc2")


def doctor_lines() -> Iterator[str]:
    """Versions, cores, memory, GPUs, scan backends and networks of other packages, one fact a line."""
    import torch

    from medmamba.compute.device import unused_gpu
    from medmamba.compute.free_memory import free_memory, main_memory
    from medmamba.kernels import backend_report
    from medmamba.models.network import describe_network
    from medmamba.plugins import GROUP
    from medmamba.version import __version__

    yield f"medmamba {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        try:
            yield f"  {name} {version(name)}"
        except PackageNotFoundError:
            yield f"  {name} is not installed"
    threads = torch.get_num_threads()
    yield f"CPU: {counted(os.cpu_count() or 0, 'core')}, torch uses {counted(threads, 'thread')}"
    free, all_of_it = free_memory(), main_memory()
    if free is not None and all_of_it is not None:
        yield f"Memory: {free / 2**30:.1f} GiB free of {all_of_it / 2**30:.1f} GiB"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield f"GPU: {', '.join(gpus) if gpus else 'none that torch can use'}"
    if (reason := unused_gpu()) is not None:
        yield f"  {reason}"
    yield "Scan backends:"
    for line in str(backend_report()).splitlines():
        yield f"  {line}"
    entries = entry_points(group=GROUP)
    yield f"Networks of other packages:{'' if entries else ' none'}"
    for entry in entries:
        try:
            describe_network(entry.name, spatial_dims=2, size=16)
        except MedmambaError as error:
            yield f"  {error}"
            continue
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module
        yield f"  {entry.name} of the package {package}"
