"""Rebuild the model that a golden file describes.

What the description leaves out is read from the shapes of the stored parameters, so that files with other sizes and
options work too. Models of published size store no parameters; they are built from the description.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medmamba.errors import ConfigError, unknown_name
from medmamba.networks.blocks.attention import WindowAttention
from medmamba.networks.blocks.patches import PatchEmbed, PatchExpand, PatchMerging
from medmamba.networks.blocks.vss import SS2D, VSSBlock
from medmamba.networks.planned.hrvmamba import DVSSBlock
from medmamba.networks.planned.lamamba import LaMambaBlock
from medmamba.networks.planned.mambaout import GatedCNNBlock
from medmamba.networks.planned.mhs_vm import HEADS, MHSMixer, MultiHeadScan
from medmamba.networks.planned.vim import BidirectionalMamba
from medmamba.networks.published import presets
from medmamba.networks.published.mambaout import PublishedMambaOut
from medmamba.networks.published.presets import Shapes, count, first, mixer_prefixes, ss2d
from medmamba.networks.published.vim import PublishedVim
from medmamba.networks.published.vm_unet import PublishedVMUNet

from .descriptions import check_options
from .golden import Golden
from .original_names import mhs_original, vim_original, vm_unet_original
from .published_lamamba import ConditionedBlock, PublishedLaMamba
from .published_mamba2 import Mamba2
from .published_sizes import MAMBAOUT, VIM
from .subject import Subject

Info = dict[str, Any]
Rebuilder = Callable[[Info, Shapes], Subject]
MODELS: list[tuple[re.Pattern[str], Rebuilder]] = []


def model(pattern: str, *takes: str, **only: tuple[object, ...]) -> Callable[[Rebuilder], Rebuilder]:
    """Register a rebuilder for the model names that match ``pattern``; the options as of ``check_options``."""

    def register(function: Rebuilder) -> Rebuilder:
        def checked(info: Info, shapes: Shapes) -> Subject:
            check_options(info, takes, only)
            return function(info, shapes)

        MODELS.append((re.compile(pattern), checked))
        return function

    return register


def rebuild(golden: Golden) -> Subject:
    """The model of a golden file. Raises ConfigError for an unknown model, an unknown option, or a lacking one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.parameters.items()}
    output = golden.tensors.get("output")
    told = {} if output is None or output.ndim < 2 else {"num_classes": output.shape[1]}
    for pattern, function in MODELS:
        if pattern.fullmatch(golden.model):
            try:
                return function({**told, **golden.info}, shapes)
            except (KeyError, IndexError, StopIteration, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{golden.model} cannot be rebuilt: {type(error).__name__} {error} in what the file says of it."
                ) from None
    raise unknown_name("golden model", golden.model, [pattern.pattern for pattern, _ in MODELS])


# -- VM-UNet and MHS-VM --------------------------------------------------------------------------------------------


class VMUNetSubject(Subject):
    """VM-UNet, whose original wraps it once more."""

    def original(self, name: str) -> str:
        return "vmunet." + vm_unet_original(name)


class MHSSubject(Subject):
    """MHS-VM's heads: the original keeps them channels-first and flat, and stacks the routes before the fusion."""

    def original(self, name: str) -> str:
        return "vmunet." + mhs_original(name).replace("mhs.x_ssproj.weight", "mhs.x_ssproj_W")

    def module_name(self, original: str) -> str:
        original = re.sub(r"scanhead_(\w)\.scanning$", r"heads.\1.scan", original)
        return re.sub(r"scanhead_(\w)$", r"heads.\1", original.removeprefix("vmunet."))

    def intermediate(self, name: str, output: Any) -> Any:
        if name.endswith(".scanning"):
            return output.permute(0, 2, 3, 1)  # (B, L, K, S) to (B, K, S, L)
        if "scanhead_" in name:
            return output.flatten(1, -2).mT  # (B, *grid, S) to (B, S, L)
        return output


def as_original(net: PublishedVMUNet) -> nn.Module:
    """Without padding, and with a sigmoid for one class, as the originals' wrapper has it."""
    net.total_stride = (1, 1)  # what the strides leave over is cut
    if net.final_conv.out_channels == 1:
        net.register_forward_hook(lambda _module, _inputs, output: torch.sigmoid(output))
    return net


def published_vm_unet(info: Info, mixer: Callable[[int], nn.Module]) -> PublishedVMUNet:
    """The U shape of published size, from its description."""
    widths = info.get("dims", (96, 192, 384, 768))
    return PublishedVMUNet(3, info["num_classes"], widths, info["depths"], info["depths_decoder"], mixer=mixer)


@model("SS2D")
def ss2d_block(info: Info, shapes: Shapes) -> Subject:
    return Subject(ss2d(shapes), "vm_unet")


@model("VSSBlock")
def vss_block(info: Info, shapes: Shapes) -> Subject:
    return Subject(VSSBlock(shapes["ln_1.weight"][0], ss2d(shapes, "self_attention."), eps=1e-6), "vm_unet")


@model("PatchEmbed2D")
def patch_embed(info: Info, shapes: Shapes) -> Subject:
    width, channels, *stride = shapes["proj.weight"]
    return Subject(PatchEmbed(channels, width, stride), "vm_unet")


@model("PatchMerging2D")
def patch_merging(info: Info, shapes: Shapes) -> Subject:
    out, joined = shapes["reduction.weight"]
    return Subject(PatchMerging(joined // 4, out, (2, 2)), "vm_unet")


@model("(Final_)?PatchExpand2D")
def patch_expand(info: Info, shapes: Shapes) -> Subject:
    cells, width = shapes["expand.weight"]
    out = shapes["norm.weight"][0]
    edge = round((cells // out) ** 0.5)
    return Subject(PatchExpand(width, out, (edge, edge)), "vm_unet")


@model("VMUNet")
def vm_unet(info: Info, shapes: Shapes) -> Subject:
    def mixer(width: int) -> nn.Module:
        return SS2D(width, state_size=info.get("d_state", 16))

    net = presets.vm_unet(shapes) if shapes else published_vm_unet(info, mixer)
    return VMUNetSubject(as_original(net), "vm_unet", network=True)


@model("VSS(Un)?Gated?", "gfu_t")
def mhs_block(info: Info, shapes: Shapes) -> Subject:
    return MHSSubject(presets.mhs_mixer(shapes, "", info["gfu_t"]), "mhs_vm")


@model("VMUNet with MHS( module)?", "gfu_t")
def mhs_vm(info: Info, shapes: Shapes) -> Subject:
    def mixer(width: int) -> nn.Module:
        mhs = MultiHeadScan(
            width,
            heads="".join(HEADS)[: info["head_num"]],
            threshold=info["gfu_t"],
            projection=info.get("with_proj", True),
            state_size=info.get("d_state", 16),
        )
        return MHSMixer(width, mhs)

    net = presets.mhs_vm(shapes, threshold=info["gfu_t"]) if shapes else published_vm_unet(info, mixer)
    return MHSSubject(as_original(net), "mhs_vm", network=True)


# -- MambaOut and Vim ----------------------------------------------------------------------------------------------


@model("GatedCNNBlock")
def gated_block(info: Info, shapes: Shapes) -> Subject:
    return Subject(GatedCNNBlock(shapes["norm.weight"][0], **presets.gated_options(shapes)), "mambaout")


@model("MambaOut.*")
def mambaout(info: Info, shapes: Shapes) -> Subject:
    if shapes:
        return Subject(presets.mambaout(shapes), "mambaout", network=True)
    depths, widths, _ = MAMBAOUT[info["model"].split()[1].lower()]
    return Subject(PublishedMambaOut(3, info["num_classes"], widths, depths), "mambaout", network=True)


class VimSubject(Subject):
    """The original's blocks return (hidden, residual) and so do ours; files hold the first."""

    def original(self, name: str) -> str:
        return vim_original(name)

    def intermediate(self, name: str, output: Any) -> Any:
        return output[0] if isinstance(output, tuple) else output


@model("Mamba mixer.*", "if_divide_out")
def mamba_mixer(info: Info, shapes: Shapes) -> Subject:
    options = presets.mamba_options(shapes)
    mixer = BidirectionalMamba(shapes["out_proj.weight"][0], divide=info.get("if_divide_out", False), **options)
    return Subject(mixer, "vim")


@model(
    "VisionMamba",
    "stride",
    "if_divide_out",
    "use_middle_cls_token",
    final_pool_type=("mean", "none"),
    if_bidirectional=(False,),
    if_abs_pos_embed=(True,),
    if_rope=(False,),
    if_bimamba=(False,),
    ssm_cfg=(None,),
    norm_epsilon=(1e-5,),
)
def vim(info: Info, shapes: Shapes) -> Subject:
    options = {"divide": info.get("if_divide_out", False), "pool": "last"}
    if info.get("final_pool_type") == "mean":
        options["pool"] = "mean"
    if "cls_token" in shapes and not info.get("use_middle_cls_token", False):
        options["class_token"] = "head"
    if info.get("stride"):
        options["stride"] = info["stride"]
    net = presets.vim(shapes, **options)
    return VimSubject(net, "vim", network=True)


@model("Vim (tiny|small|base).*")
def published_vim(info: Info, shapes: Shapes) -> Subject:
    net = PublishedVim(classes=info["num_classes"], width=VIM[info["model"].split()[1]])
    return VimSubject(net, "vim", network=True)


# -- LaMamba, Mamba-2, DCNv4 and HRVMamba --------------------------------------------------------------------------


def lamamba_route(info: Info) -> str:
    """The route set of LaMamba's scans."""
    return "continuous" if info["ctor"]["continuous_scan"] else "cross"


@model(r"LaMamba block.*", "shift_size", "continuous_scan", forward_type=("v2",))
def lamamba_block(info: Info, shapes: Shapes) -> Subject:
    shift, width = info["ctor"]["shift_size"], shapes["norm.weight"][0]
    places, heads = shapes["attn.relative_position_bias_table"]
    edge = (math.isqrt(places) + 1) // 2
    if shift not in (0, edge // 2):
        raise ConfigError(f"shift_size of {info['model']} is {shift}; known here are 0 and {edge // 2}.")
    condition = shapes.get("condition_projection.weight")
    scan = ss2d(shapes, "op.", route=lamamba_route(info))
    attention = WindowAttention(width, heads, (edge, edge), shifted=shift > 0)
    ratio = shapes["mlp.fc1.weight"][0] / width
    if condition is None:
        return Subject(LaMambaBlock(width, scan, attention, mlp_ratio=ratio), "lamamba")
    block = ConditionedBlock(width, scan, attention, condition[1], mlp_ratio=ratio)
    return Subject(block, "lamamba", inputs=("input", "condition"))


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
def lamamba_unet(info: Info, shapes: Shapes) -> Subject:
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    depths = [count(shapes, rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    prefixes = mixer_prefixes(shapes, "norm", "op")
    net = PublishedLaMamba(
        channels,
        shapes["final_linear.weight"][0],
        width,
        resolution=shapes["pos_embed"][1],
        patch=patch,
        depths=depths,
        middle_depth=count(shapes, r"mid_layer\.blocks\.(\d+)\."),
        extra_decoder_blocks=count(shapes, r"layers_up\.3\.blocks\.(\d+)\.") - depths[0],
        heads=info["ctor"]["num_heads"],
        window=info["ctor"]["window_size"],
        mlp_ratio=first(shapes, "layers.0.blocks.0.mlp.fc1.weight")[0] / width,
        scan=lambda c: ss2d(shapes, prefixes[c], route=lamamba_route(info)),
    )
    return Subject(net, "lamamba", network=True)


@model(r"Mamba2Simple", "ngroups", "chunk_size", activation=("swish", "silu"))
def mamba2(info: Info, shapes: Shapes) -> Subject:
    groups = info["ctor"]["ngroups"]
    width, inner = shapes["out_proj.weight"]
    layer = Mamba2(
        width,
        state_size=(shapes["conv1d.weight"][0] - inner) // (2 * groups),
        kernel=shapes["conv1d.weight"][-1],
        expand=inner / width,
        head_width=inner // shapes["A_log"][0],
        groups=groups,
        bias="in_proj.bias" in shapes,
        conv_bias="conv1d.bias" in shapes,
        block=info["ctor"]["chunk_size"],
    )
    return Subject(layer, "mamba2")


SAMPLING = {
    "kernel_size": "kernel",
    "stride": "stride",
    "pad": "padding",
    "dilation": "dilation",
    "offset_scale": "offset_scale",
    "remove_center": "remove_center",
}
"""DCNv4's options of its sampling -> ours."""


@model(r"DCNv4", "group", *SAMPLING, center_feature_scale=(False,))
def deformable(info: Info, shapes: Shapes) -> Subject:
    ctor = info["ctor"]
    sampling = {ours: ctor[theirs] for theirs, ours in SAMPLING.items() if theirs in ctor}
    return Subject(presets.deformable(shapes, "", ctor["channels"], ctor["group"], **sampling), "hrvmamba")


DVSS: dict[str, tuple[object, ...]] = {
    "forward_type": ("v05_noz",),
    "ssm_act_layer": ("silu",),
    "mlp_act_layer": ("gelu",),
    "gmlp": (False,),
    "block": ("HRVmambaBlock", "BOTTLENECK"),
}


@model(r"HRVmambaBlock(\(se_lpu\))?", **DVSS)
def dvss_block(info: Info, shapes: Shapes) -> Subject:
    width = shapes["norm.weight"][0]
    ratio = shapes["mlp.fc1.weight"][0] / width
    block = DVSSBlock(width, presets.dss(shapes, "op."), mlp_ratio=ratio, se_lpu="cpe1.weight" in shapes)
    return Subject(block, "hrvmamba", channels_first=True)


@model(r"HRVmamba.* multi-resolution backbone.*", **DVSS)
def hrvmamba(info: Info, shapes: Shapes) -> Subject:
    return Subject(presets.hrvmamba(shapes), "hrvmamba", network=True)
