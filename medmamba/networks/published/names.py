"""Parameter names of the original projects translated to ours.

The parameters have the same shapes; only where they live differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Rule = tuple[str, str]

_SS2D: tuple[Rule, ...] = (
    (r"(^|\.)conv2d\.", r"\1conv."),  # it has three axes in a volume
    (r"(^|\.)(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$", r"\1scan.\2"),
)
_U_SHAPE: tuple[Rule, ...] = ((r"^vmunet\.", ""),)  # the wrapper of VM-UNet and MHS-VM

# (pattern, replacement) per family, applied in order to every original name; an empty name is one not needed here.
RULES: dict[str, tuple[Rule, ...]] = {
    "vm_unet": (*_U_SHAPE, *_SS2D),
    "mhs_vm": (
        *_U_SHAPE,
        (r"mhs\.x_ssproj_W$", "mhs.x_ssproj.weight"),  # the same matrix under two names
        (r"\.scanning\.seq2seq_engine\.", ".mambaeng."),  # the same engine under two names
        (r"mhs\.scanhead_(\w)\.mambaeng\.", r"mhs.heads.\1."),
        *_SS2D,
    ),
    "vim": (
        (r"(^|\.)conv1d\.", r"\1forwards.conv1d."),
        (r"(^|\.)conv1d_b\.", r"\1backwards.conv1d."),
        (r"(^|\.)(x_proj|dt_proj)\.", r"\1forwards.scan.\2."),
        (r"(^|\.)(x_proj|dt_proj)_b\.", r"\1backwards.scan.\2."),
        (r"(^|\.)(A_log|D)$", r"\1forwards.scan.\2"),
        (r"(^|\.)A_b_log$", r"\1backwards.scan.A_log"),
        (r"(^|\.)D_b$", r"\1backwards.scan.D"),
    ),
    "mambaout": (),
    "mambaout_timm": (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
        (r"^head\.norm\.", "norm."),  # what the original calls head.norm is head.pre_logits.norm here
        (r"^head\.pre_logits\.fc\.", "head.fc1."),
        (r"^head\.pre_logits\.norm\.", "head.norm."),
        (r"^head\.fc\.", "head.fc2."),
    ),
    "lamamba": (
        (r"^(.*\.)?(attn\.relative_position_index|attn_mask)$", ""),  # computed from the sizes
        *_SS2D,
    ),
    "hrvmamba": _SS2D,
    "mamba2": ((r"(^|\.)(dt_bias|A_log|D)$", r"\1scan.\2"),),
}


def our_name(original: str, family: str) -> str:
    """The name here of a parameter called ``original`` in the project that published it.

    >>> our_name("vmunet.layers.0.blocks.1.self_attention.A_logs", "vm_unet")
    'layers.0.blocks.1.self_attention.scan.A_logs'
    """
    for pattern, replacement in RULES[family]:
        original = re.sub(pattern, replacement, original)
    return original


def mambaout_layout(names: Iterable[str]) -> str:
    """Which of the two published layouts of MambaOut's names names are in."""
    return "mambaout_timm" if any(name.startswith("stem.") for name in names) else "mambaout"
