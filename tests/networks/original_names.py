"""Our parameter names back to those of the original projects."""

from __future__ import annotations

import re

from torch import Tensor

State = dict[str, Tensor]


def ss2d_original(state: State) -> State:
    """VM-UNet's, LaMamba's and HRVMamba's names."""
    names = {key: re.sub(r"(^|\.)scan\.([^.]+)$", r"\1\2", key) for key in state}
    return {re.sub(r"(^|\.)conv\.", r"\1conv2d.", new): state[key] for key, new in names.items()}


def vim_original(state: State) -> State:
    out = {}
    for key, tensor in state.items():
        key = re.sub(r"forwards\.(scan\.)?", "", key)
        key = re.sub(r"backwards\.(?:scan\.)?(x_proj|dt_proj|conv1d)\.", r"\1_b.", key)
        out[key.replace("backwards.scan.A_log", "A_b_log").replace("backwards.scan.D", "D_b")] = tensor
    return out


def mhs_original(state: State) -> State:
    return ss2d_original({re.sub(r"heads\.(\w)\.scan\.", r"scanhead_\1.mambaeng.", key): t for key, t in state.items()})


def mamba2_original(state: State) -> State:
    return {key.removeprefix("scan."): tensor for key, tensor in state.items()}
