"""Published weights: the names of the original projects translated to ours.

The parameters themselves have the same shapes; only where they live differs. The rules are few, and they are the same
for a state dict, for a list of gradients, and for anything else that is keyed by parameter name.
"""

from __future__ import annotations

import re

# (pattern, replacement), applied in order to every name.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^vmunet\."), ""),  # the wrapper of VM-UNet and MHS-VM
    (re.compile(r"(^|\.)conv2d\."), r"\1conv."),  # it has three axes in a volume
    (re.compile(r"(^|\.)(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$"), r"\1scan.\2"),
)


def our_name(original: str) -> str:
    """The name here of a parameter called ``original`` in the project that published it.

    >>> our_name("vmunet.layers.0.blocks.1.self_attention.A_logs")
    'layers.0.blocks.1.self_attention.scan.A_logs'
    """
    for pattern, replacement in _RULES:
        original = pattern.sub(replacement, original)
    return original
