"""Published networks from the shapes of their weights, under the original project's parameter names.

First the blocks whose parameters begin with a prefix, then the networks, then what both read from names. Values that no
shape determines (MHS-VM's threshold, the position of Vim's class token) are the published ones.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from medmamba.networks.blocks.deformable import DeformableConv
from medmamba.networks.blocks.vss import SS2D
from medmamba.networks.planned.hrvmamba import DSS
from medmamba.networks.planned.mhs_vm import HEADS, MHSMixer, MultiHeadScan
from medmamba.networks.published.hrvmamba import PublishedHRVMamba
from medmamba.networks.published.mambaout import PublishedMambaOut
from medmamba.networks.published.vim import PublishedVim
from medmamba.networks.published.vm_unet import PublishedVMUNet

Shapes = Mapping[str, tuple[int, ...]]

MHS_THRESHOLD = 0.5  # of the fusion, which no checkpoint of MHS-VM stores: the published value for ISIC 2018


def ss2d(shapes: Shapes, prefix: str = "", **options: Any) -> SS2D:
    """VM-UNet's mixer; ``options`` are those of SS2D that no shape tells."""
    inner, width = shapes[prefix + "out_norm.weight"][0], shapes[prefix + "in_proj.weight"][1]
    return SS2D(
        width,
        expand=inner / width,
        state_size=shapes[prefix + "A_logs"][1],
        kernel=shapes[prefix + "conv2d.weight"][2:],
        bias=prefix + "in_proj.bias" in shapes,
        conv_bias=prefix + "conv2d.bias" in shapes,
        dt_rank=shapes[prefix + "dt_projs_weight"][-1],
        **options,
    )


def mhs_mixer(shapes: Shapes, prefix: str, threshold: float) -> MHSMixer:
    """MHS-VM's mixer."""
    width = shapes[prefix + "out_norm.weight"][0]
    heads = "".join(h for h in HEADS if f"{prefix}mhs.scanhead_{h}.mambaeng.A_logs" in shapes)
    engine = f"{prefix}mhs.scanhead_{heads[0]}.mambaeng."
    mhs = MultiHeadScan(
        width,
        heads=heads,
        threshold=threshold,
        projection=prefix + "mhs.y_proj.weight" in shapes,
        state_size=shapes[engine + "A_logs"][1],
        dt_rank=shapes[engine + "dt_projs_weight"][-1],
    )
    kernel = shapes[prefix + "conv2d.weight"][2:]
    return MHSMixer(width, mhs, kernel=kernel, gated=prefix + "in_proj.weight" in shapes)


def mamba_options(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """Arguments of BidirectionalMamba beside its width."""
    width, inner = shapes[prefix + "out_proj.weight"]
    both = "v2" if prefix + "conv1d_b.weight" in shapes else "v1"
    return {
        "state_size": shapes[prefix + "A_log"][1],
        "expand": inner / width,
        "kernel": shapes[prefix + "conv1d.weight"][-1],
        "directions": both if prefix + "A_b_log" in shapes else "none",
        "layer_scale": 0.0 if prefix + "gamma" in shapes else None,
        "bias": prefix + "in_proj.bias" in shapes,
        "conv_bias": prefix + "conv1d.bias" in shapes,
        "dt_rank": shapes[prefix + "dt_proj.weight"][1],
    }


def gated_options(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """Arguments of GatedCNNBlock beside its width; an expansion of 8/3 if that is what the shapes were cut from."""
    width, hidden = shapes[prefix + "fc2.weight"]
    seen, _, *kernel = shapes[prefix + "conv.weight"]
    expansion = 8 / 3 if int(8 / 3 * width) == hidden else _ratio(hidden, width)
    return {"expansion": expansion, "conv_ratio": _ratio(seen, width), "kernel": kernel}


def deformable(shapes: Shapes, prefix: str, channels: int, groups: int, **geometry: Any) -> DeformableConv:
    """DCNv4's layer; ``geometry`` as of DeformableConv."""
    return DeformableConv(
        channels,
        groups,
        offset_kernel=shapes.get(prefix + "offset_mask_dw.weight", (None,))[-1],
        pointwise=prefix + "value_proj.weight" in shapes,
        output_bias=prefix + "output_proj.bias" in shapes,
        **geometry,
    )


def dss(shapes: Shapes, prefix: str) -> DSS:
    """HRVMamba's mixer."""
    width, inner = shapes[prefix + "out_proj.weight"][:2]
    rank = shapes[prefix + "dt_projs_weight"][-1]
    return DSS(
        width,
        expand=inner / width,
        state_size=shapes[prefix + "A_logs"][1],
        local=deformable(shapes, prefix + "conv2d.", inner, rank),
        squeeze_excite=prefix + "se.fc.0.weight" in shapes,
        dt_rank=rank,
    )


def vm_unet(shapes: Shapes, read: Callable[[Shapes, str], nn.Module] = ss2d) -> PublishedVMUNet:
    """VM-UNet; ``read`` makes a mixer from the parameters whose names begin with a prefix."""
    prefixes = mixer_prefixes(shapes, "ln_1", "self_attention")
    widths, depths = _stages(shapes, "layers")
    return PublishedVMUNet(
        first(shapes, "patch_embed.proj.weight")[1],
        first(shapes, "final_conv.weight")[0],
        widths,
        depths,
        _stages(shapes, "layers_up")[1],
        mixer=lambda width: read(shapes, prefixes[width]),
    )


def mhs_vm(shapes: Shapes, *, threshold: float = MHS_THRESHOLD) -> PublishedVMUNet:
    """VM-UNet's shape with MHS-VM's mixers."""
    return vm_unet(shapes, lambda named, prefix: mhs_mixer(named, prefix, threshold))


def vim(shapes: Shapes, **options: Any) -> PublishedVim:
    """Vim; ``options`` are those of PublishedVim that no shape tells."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    places = {"cls_token": ("middle", 1), "cls_token_head": ("both", 2)}
    token, extra = next((place for name, place in places.items() if name in shapes), ("none", 0))
    read = {
        "tokens": shapes["pos_embed"][1] - extra,
        "patch": patch,
        "stride": patch,
        "class_token": token,
        "rms_norm": "norm_f.bias" not in shapes,
        **mamba_options(shapes, "layers.0.mixer."),
    }
    depth = count(shapes, r"layers\.(\d+)\.")
    return PublishedVim(channels, shapes["head.weight"][0], width, depth, **{**read, **options})


def mambaout(shapes: Shapes) -> PublishedMambaOut:
    """MambaOut, from shapes under the names of its first release."""
    stages = range(count(shapes, r"downsample_layers\.(\d+)\."))
    return PublishedMambaOut(
        shapes["downsample_layers.0.conv1.weight"][1],
        shapes["head.fc2.weight"][0],
        [shapes[f"downsample_layers.{i}.norm{'' if i else '2'}.weight"][0] for i in stages],
        [count(shapes, rf"stages\.{i}\.(\d+)\.") for i in stages],
        **gated_options(shapes, "stages.0.0."),
    )


def hrvmamba(shapes: Shapes) -> PublishedHRVMamba:
    """HRVMamba's backbone."""
    prefixes = mixer_prefixes(shapes, "norm", "op")
    hidden, width = first(shapes, "mlp.fc1.weight")
    return PublishedHRVMamba(
        shapes["conv1.weight"][1],
        shapes["layer1.0.conv1.weight"][0],
        [shapes[f"stage4.0.branches.{i}.0.norm.weight"][0] for i in range(4)],
        se_lpu=any(".cpe1." in name for name in shapes),
        bottlenecks=count(shapes, r"layer1\.(\d+)\."),
        modules=[count(shapes, rf"stage{s}\.(\d+)\.") for s in (2, 3, 4)],
        blocks=[count(shapes, rf"stage{s}\.0\.branches\.0\.(\d+)\.") for s in (2, 3, 4)],
        mlp_ratio=hidden / width,
        mixer=lambda c: dss(shapes, prefixes[c]),
        output_norms="outnorm0.weight" in shapes,
    )


PRESETS: dict[str, Callable[[Shapes], nn.Module]] = {
    "vm_unet": vm_unet,
    "vmamba_v0": lambda _: PublishedVMUNet(),
    "mhs_vm": mhs_vm,
    "hrvmamba": hrvmamba,
    "vim": vim,
    "mambaout": mambaout,
}
"""Kinds of published checkpoints; vmamba_v0 is VMamba's pretraining, loaded into both halves of VM-UNet."""


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that the pattern's group takes in the parameter names; 0 without any."""
    return 1 + max((int(found[1]) for found in (re.match(pattern, name) for name in shapes) if found), default=-1)


def first(shapes: Shapes, ending: str) -> tuple[int, ...]:
    """Shape of the first parameter whose name ends so. Raises StopIteration without one."""
    return next(shape for name, shape in shapes.items() if name.endswith(ending))


def mixer_prefixes(shapes: Shapes, norm: str, mixer: str) -> dict[int, str]:
    """Width of a block -> prefix of one such block's mixer; ``norm`` and ``mixer`` are names in a block."""
    blocks = {name.partition(f".{mixer}.")[0] for name in shapes if f".{mixer}." in name}
    return {shapes[f"{block}.{norm}.weight"][0]: f"{block}.{mixer}." for block in blocks}


def _stages(shapes: Shapes, stages: str) -> tuple[list[int], list[int]]:
    """Width (of ``ln_1``) and number of blocks of every ``<stages>.<i>.blocks.<j>``."""
    pattern = rf"(?:.*\.)?{stages}\."
    numbers = range(count(shapes, rf"{pattern}(\d+)\.blocks\."))
    widths = [first(shapes, f"{stages}.{i}.blocks.0.ln_1.weight")[0] for i in numbers]
    return widths, [count(shapes, rf"{pattern}{i}\.blocks\.(\d+)\.") for i in numbers]


def _ratio(part: int, whole: int) -> float:
    """A factor of which ``int(factor * whole)`` is ``part``."""
    return part / whole if int(part / whole * whole) == part else (part + 0.5) / whole
