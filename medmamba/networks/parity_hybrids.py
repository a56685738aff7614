"""Rebuild the blocks and networks that put a scan beside attention or deformable convolution, and Mamba-2."""

from __future__ import annotations

from typing import Any

from medmamba.networks.attention import WindowAttention
from medmamba.networks.deformable import DeformableConv
from medmamba.networks.hrvmamba import DSS, DVSSBlock, PublishedHRVMamba
from medmamba.networks.lamamba import LaMambaBlock, PublishedLaMamba
from medmamba.networks.mamba2 import Mamba2
from medmamba.networks.parity_models import Shapes, Subject, count, first, model
from medmamba.networks.vss import SS2D


@model(r"LaMamba block.*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    width, heads = shapes["norm.weight"][0], shapes["attn.relative_position_bias_table"][1]
    edge = min(ctor["window_size"], ctor["input_resolution"])
    scan = SS2D(
        width,
        expand=shapes["op.out_norm.weight"][0] / width,
        state_size=shapes["op.A_logs"][1],
        kernel=shapes["op.conv2d.weight"][-1],
        conv_bias="op.conv2d.bias" in shapes,
        route="continuous" if ctor["continuous_scan"] else "cross",
    )
    condition = shapes.get("condition_projection.weight")
    block = LaMambaBlock(
        width,
        scan,
        WindowAttention(width, heads, (edge, edge), shifted=ctor["shift_size"] > 0),
        mlp_ratio=shapes["mlp.fc1.weight"][0] / width,
        condition_width=condition[1] if condition else None,
    )
    return Subject(block, "lamamba", inputs=("input", "condition") if condition else ("input",))


@model(r"LaMamba U-Net.*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    net = PublishedLaMamba(
        channels,
        shapes["final_linear.weight"][0],
        width,
        resolution=shapes["pos_embed"][1],
        patch=patch,
        depths=ctor["depths"],
        middle_depth=ctor["bottleneck_depth"],
        heads=ctor["num_heads"],
        window=ctor["window_size"],
        state_size=first(shapes, "A_logs")[1],
        continuous=ctor["continuous_scan"],
    )
    return Subject(net, "lamamba", network=True)


@model(r"Mamba2Simple")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    width, inner = shapes["out_proj.weight"]
    layer = Mamba2(
        width,
        state_size=ctor["d_state"],
        kernel=shapes["conv1d.weight"][-1],
        expand=inner / width,
        head_width=inner // shapes["A_log"][0],
        groups=ctor["ngroups"],
        block=ctor["chunk_size"],
    )
    return Subject(layer, "mamba2")


@model(r"DCNv4")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    return Subject(_deformable(shapes, "", ctor["channels"], ctor["group"]), "hrvmamba")


def _deformable(shapes: Shapes, prefix: str, channels: int, groups: int) -> DeformableConv:
    offset_kernel = shapes.get(prefix + "offset_mask_dw.weight")
    return DeformableConv(
        channels,
        groups,
        offset_kernel=offset_kernel[-1] if offset_kernel else None,
        pointwise=prefix + "value_proj.weight" in shapes,
        output_bias=prefix + "output_proj.bias" in shapes,
    )


@model(r"HRVmambaBlock(\(se_lpu\))?")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width, inner = shapes["op.out_proj.weight"]
    rank = shapes["op.dt_projs_weight"][-1]
    mixer = DSS(
        width,
        expand=inner / width,
        state_size=shapes["op.A_logs"][1],
        local=_deformable(shapes, "op.conv2d.", inner, rank),
        squeeze_excite="op.se.fc.0.weight" in shapes,
    )
    block = DVSSBlock(width, mixer, mlp_ratio=shapes["mlp.fc1.weight"][0] / width, se_lpu="cpe1.weight" in shapes)
    return Subject(block, "hrvmamba", channels_first=True)


@model(r"HRVmamba.* multi-resolution backbone.*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    net = PublishedHRVMamba(
        info["in_channels"],
        shapes["layer1.0.conv1.weight"][0],
        shapes["stage2.0.branches.0.0.norm.weight"][0],
        se_lpu=any(".cpe1." in name for name in shapes),
        modules=[count(shapes, rf"stage{s}\.(\d+)\.") for s in (2, 3, 4)],
        blocks=count(shapes, r"stage2\.0\.branches\.0\.(\d+)\."),
        state_size=first(shapes, "A_logs")[1],
        pointwise=any(".value_proj." in name for name in shapes),
        output_norms="outnorm0.weight" in shapes,
    )
    return Subject(net, "hrvmamba", network=True)
