"""Rebuild the blocks and networks that put a scan beside attention or deformable convolution, and Mamba-2."""

from __future__ import annotations

import math
from typing import Any

from medmamba.errors import ConfigError
from medmamba.networks.blocks.attention import WindowAttention
from medmamba.networks.blocks.deformable import DeformableConv
from medmamba.networks.blocks.hrvmamba import DSS, DVSSBlock
from medmamba.networks.blocks.lamamba import LaMambaBlock
from medmamba.networks.blocks.mamba2 import Mamba2
from medmamba.networks.published.hrvmamba import PublishedHRVMamba
from medmamba.networks.published.lamamba import PublishedLaMamba
from medmamba.parity.models import Shapes, Subject, by_width, count, first, model, ss2d


@model(r"LaMamba block.*", "shift_size", "continuous_scan", forward_type=("v2",))
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    width = shapes["norm.weight"][0]
    places, heads = shapes["attn.relative_position_bias_table"]
    edge = (math.isqrt(places) + 1) // 2
    if ctor["shift_size"] not in (0, edge // 2):
        raise ConfigError(f"shift_size of {info['model']} is {ctor['shift_size']}; known here are 0 and {edge // 2}.")
    condition = shapes.get("condition_projection.weight")
    block = LaMambaBlock(
        width,
        ss2d(shapes, "op.", route=_route(ctor)),
        WindowAttention(width, heads, (edge, edge), shifted=ctor["shift_size"] > 0),
        mlp_ratio=shapes["mlp.fc1.weight"][0] / width,
        condition_width=condition[1] if condition else None,
    )
    return Subject(block, "lamamba", inputs=("input", "condition") if condition else ("input",))


def _route(ctor: dict[str, Any]) -> str:
    return "continuous" if ctor["continuous_scan"] else "cross"


@model(
    r"LaMamba U-Net.*",
    "continuous_scan",
    forward_type=("v2",),
    skip_concat=(False,),
    ssm_act_layer=("silu",),
    mlp_act_layer=("gelu",),
    patch_norm=(True,),
    norm_layer=("ln",),
    downsample_version=("v1",),
    patchembed_version=("v2",),
)
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    depths = [count(shapes, rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    prefixes = by_width(shapes, "norm", "op")
    net = PublishedLaMamba(
        channels,
        shapes["final_linear.weight"][0],
        width,
        resolution=shapes["pos_embed"][1],
        patch=patch,
        depths=depths,
        middle_depth=count(shapes, r"mid_layer\.blocks\.(\d+)\."),
        extra_decoder_blocks=count(shapes, r"layers_up\.3\.blocks\.(\d+)\.") - depths[0],
        heads=ctor["num_heads"],
        window=ctor["window_size"],
        mlp_ratio=shapes["layers.0.blocks.0.mlp.fc1.weight"][0] / width,
        scan=lambda c: ss2d(shapes, prefixes[c], route=_route(ctor)),
    )
    return Subject(net, "lamamba", network=True)


@model(r"Mamba2Simple", "ngroups", "chunk_size", activation=("swish", "silu"))
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    width, inner = shapes["out_proj.weight"]
    layer = Mamba2(
        width,
        state_size=(shapes["conv1d.weight"][0] - inner) // (2 * ctor["ngroups"]),
        kernel=shapes["conv1d.weight"][-1],
        expand=inner / width,
        head_width=inner // shapes["A_log"][0],
        groups=ctor["ngroups"],
        bias="in_proj.bias" in shapes,
        conv_bias="conv1d.bias" in shapes,
        block=ctor["chunk_size"],
    )
    return Subject(layer, "mamba2")


_GEOMETRY = {
    "kernel_size": "kernel",
    "stride": "stride",
    "pad": "padding",
    "dilation": "dilation",
    "offset_scale": "offset_scale",
    "remove_center": "remove_center",
}


@model(r"DCNv4", "group", *_GEOMETRY, center_feature_scale=(False,))
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    geometry = {ours: ctor[theirs] for theirs, ours in _GEOMETRY.items() if theirs in ctor}
    return Subject(_deformable(shapes, "", ctor["channels"], ctor["group"], **geometry), "hrvmamba")


def _deformable(shapes: Shapes, prefix: str, channels: int, groups: int, **geometry: Any) -> DeformableConv:
    offset_kernel = shapes.get(prefix + "offset_mask_dw.weight")
    return DeformableConv(
        channels,
        groups,
        offset_kernel=offset_kernel[-1] if offset_kernel else None,
        pointwise=prefix + "value_proj.weight" in shapes,
        output_bias=prefix + "output_proj.bias" in shapes,
        **geometry,
    )


_DVSS: dict[str, tuple[object, ...]] = {
    "forward_type": ("v05_noz",),
    "ssm_act_layer": ("silu",),
    "mlp_act_layer": ("gelu",),
    "gmlp": (False,),
    "block": ("HRVmambaBlock", "BOTTLENECK"),
}


def _dss(shapes: Shapes, prefix: str) -> DSS:
    """The mixer whose parameters begin with ``prefix``."""
    width, inner = shapes[prefix + "out_proj.weight"][:2]
    rank = shapes[prefix + "dt_projs_weight"][-1]
    return DSS(
        width,
        expand=inner / width,
        state_size=shapes[prefix + "A_logs"][1],
        local=_deformable(shapes, prefix + "conv2d.", inner, rank),
        squeeze_excite=prefix + "se.fc.0.weight" in shapes,
        dt_rank=rank,
    )


@model(r"HRVmambaBlock(\(se_lpu\))?", **_DVSS)
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width = shapes["norm.weight"][0]
    ratio = shapes["mlp.fc1.weight"][0] / width
    block = DVSSBlock(width, _dss(shapes, "op."), mlp_ratio=ratio, se_lpu="cpe1.weight" in shapes)
    return Subject(block, "hrvmamba", channels_first=True)


@model(r"HRVmamba.* multi-resolution backbone.*", **_DVSS)
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    widths = [shapes[f"stage4.0.branches.{i}.0.norm.weight"][0] for i in range(4)]
    prefixes = by_width(shapes, "norm", "op")
    net = PublishedHRVMamba(
        shapes["conv1.weight"][1],
        shapes["layer1.0.conv1.weight"][0],
        widths,
        se_lpu=any(".cpe1." in name for name in shapes),
        bottlenecks=count(shapes, r"layer1\.(\d+)\."),
        modules=[count(shapes, rf"stage{s}\.(\d+)\.") for s in (2, 3, 4)],
        blocks=[count(shapes, rf"stage{s}\.0\.branches\.0\.(\d+)\.") for s in (2, 3, 4)],
        mlp_ratio=first(shapes, "mlp.fc1.weight")[0] / first(shapes, "mlp.fc1.weight")[1],
        mixer=lambda c: _dss(shapes, prefixes[c]),
        output_norms="outnorm0.weight" in shapes,
    )
    return Subject(net, "hrvmamba", network=True)
