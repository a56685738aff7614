"""The published PyTorch scans that the CPU benchmark is compared with, loaded from checkouts that the user names.

Nothing of theirs is kept here. `--peers FOLDER` holds the checkouts `mamba` (state-spaces/mamba), `VMamba`
(MzeroMiko/VMamba) and `mamba.py` (alxndrTL/mamba.py); those that are missing are left out of the tables and named.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus

Peer = Callable[[dict[str, Tensor]], Tensor]


def _module(path: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # torch.compile looks functions up by their module
    spec.loader.exec_module(module)
    return module


def _stand_in(name: str, **contents: object) -> None:
    """An empty module for an import of the peer that the reference function does not use."""
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules.setdefault(name, module)


def mamba_ssm(folder: Path) -> Peer:
    """`selective_scan_ref` of state-spaces/mamba."""
    for name in ("mamba_ssm", "mamba_ssm.utils", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        _stand_in(name)
    _stand_in("mamba_ssm.utils.torch", custom_bwd=lambda f: f, custom_fwd=lambda f: f)
    _stand_in("mamba_ssm.ops.triton.layer_norm", _layer_norm_fwd=None)
    reference = _module(folder / "mamba_ssm/ops/selective_scan_interface.py", "peer_mamba_ssm").selective_scan_ref
    return lambda g: reference(g["u"], g["delta"], g["A"], g["B"], g["C"], g["D"], None, g["bias"], True)


def vmamba(folder: Path) -> Peer:
    """`selective_scan_easy` of VMamba; chunk 16, because its quotients of decays overflow at 64.

    The file gives that name to other functions further down, so the first one of the name is imported alone.
    """
    source = (folder / "kernels/selective_scan/test_selective_scan_easy.py").read_text()
    definitions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    first = next(node for node in definitions if node.name == "selective_scan_easy")
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch) / "peer_vmamba.py"
        alone.write_text(f"import torch\n\n{ast.get_source_segment(source, first)}\n")
        easy = _module(alone, "peer_vmamba").selective_scan_easy
    return lambda g: easy(g["u"], g["delta"], g["A"], g["B"], g["C"], g["D"], g["bias"], True, False, 16)


def mamba_py(folder: Path) -> Peer:
    """`pscan` of mamba.py, with the steps around it as that project writes them."""
    pscan = _module(folder / "mambapy/pscan.py", "peer_mamba_py").pscan

    def run(g: dict[str, Tensor]) -> Tensor:
        batch, channels, length = g["u"].shape
        groups, states = g["B"].shape[1:3]
        delta = softplus(g["delta"] + g["bias"].unsqueeze(-1)).transpose(1, 2)  # (b, l, kd)
        u = g["u"].transpose(1, 2)

        def per_channel(value: Tensor) -> Tensor:  # (b, l, kd, n)
            wide = value.permute(0, 3, 1, 2).unsqueeze(3).expand(-1, -1, -1, channels // groups, -1)
            return wide.reshape(batch, length, channels, states)

        h = pscan(torch.exp(delta.unsqueeze(-1) * g["A"]), (delta * u).unsqueeze(-1) * per_channel(g["B"]))
        return ((h * per_channel(g["C"])).sum(-1) + g["D"] * u).transpose(1, 2)

    return run


LOADERS = {
    "mamba_ssm ref": ("mamba", mamba_ssm),
    "VMamba easy": ("VMamba", vmamba),
    "mamba.py pscan": ("mamba.py", mamba_py),
}


def load_peers(folder: Path | None) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be loaded, and why the others cannot."""
    found: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name, (subfolder, loader) in LOADERS.items():
        if folder is None:
            missing[name] = "no --peers folder was given"
            continue
        try:
            found[name] = loader(folder / subfolder)
        except (ImportError, OSError) as error:
            missing[name] = str(error)
    return found, missing
