"""Our parameter names back to those of the original projects; the other way is ``published/weights.py``."""

from __future__ import annotations

import re


def vm_unet_original(name: str) -> str:
    """VM-UNet's, LaMamba's and HRVMamba's names."""
    name = re.sub(r"(^|\.)scan\.([^.]+)$", r"\1\2", name)
    return re.sub(r"(^|\.)conv\.", r"\1conv2d.", name)


def mhs_original(name: str) -> str:
    """MHS-VM's names."""
    return vm_unet_original(re.sub(r"heads\.(\w)\.scan\.", r"scanhead_\1.mambaeng.", name))


def vim_original(name: str) -> str:
    """Vim's names."""
    name = re.sub(r"forwards\.(scan\.)?", "", name)
    name = re.sub(r"backwards\.(?:scan\.)?(x_proj|dt_proj|conv1d)\.", r"\1_b.", name)
    return name.replace("backwards.scan.A_log", "A_b_log").replace("backwards.scan.D", "D_b")


def mamba2_original(name: str) -> str:
    """Mamba-2's names."""
    return name.removeprefix("scan.")
