"""Rebuild the model that a golden file describes.

Constructor arguments that the description leaves out are read from the shapes of the stored parameters, so that files
with other sizes and options work too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.errors import ConfigError, unknown_name
from medmamba.networks.golden import Golden
from medmamba.networks.mambaout import SIZES, GatedCNNBlock, PublishedMambaOut
from medmamba.networks.mhs import HEADS, MHSMixer, MultiHeadScan
from medmamba.networks.resample import PatchEmbed, PatchExpand, PatchMerging
from medmamba.networks.vim import BidirectionalMamba, PublishedVim
from medmamba.networks.vm_unet import PublishedVMUNet
from medmamba.networks.vss import SS2D, VSSBlock
from medmamba.networks.weights import our_name


@dataclass
class Subject:
    """A rebuilt model and how to speak about it in the original's words.

    Attributes:
        family: whose renaming rules apply (see ``weights.py``).
        network: a whole network (its tolerances are wider than a block's).
        inputs: keys of the tensors the model takes.
        channels_first: the original's block takes (B, C, H, W) where ours takes (B, H, W, C).
        original: our parameter name to the original's (published sizes, whose parameters are drawn by name).
    """

    module: nn.Module
    family: str
    network: bool = False
    inputs: tuple[str, ...] = ("input",)
    channels_first: bool = False
    original: Callable[[str], str] = field(default=lambda name: name)

    def run(self, *inputs: Tensor) -> Any:
        """The model's result for inputs in the original's layout."""
        if self.channels_first:
            return self.module(*(x.movedim(1, -1) for x in inputs)).movedim(-1, 1)
        return self.module(*inputs)

    def our_name(self, original: str) -> str:
        """Where the original's parameter lives here."""
        return our_name(original, self.family)

    def module_name(self, original: str) -> str:
        """Where the original's submodule lives here."""
        return self.our_name(original + ".").removesuffix(".")

    def intermediate(self, name: str, output: Tensor) -> Tensor:
        """A submodule's output in the original's layout."""
        return output

    def outputs(self, result: Any) -> dict[str, Tensor]:
        """Results by the keys under which files store them."""
        if isinstance(result, Tensor):
            return {"output": result}
        return {f"output{i}": tensor for i, tensor in enumerate(result)}


Shapes = dict[str, tuple[int, ...]]
Rebuilder = Callable[[dict[str, Any], Shapes], Subject]
_MODELS: list[tuple[re.Pattern[str], Rebuilder]] = []


def model(pattern: str) -> Callable[[Rebuilder], Rebuilder]:
    """Register a rebuilder for the model names that match ``pattern`` completely."""

    def register(function: Rebuilder) -> Rebuilder:
        _MODELS.append((re.compile(pattern), function))
        return function

    return register


def rebuild(golden: Golden) -> Subject:
    """The model of a golden file. Raises ConfigError for an unknown model name."""
    import medmamba.networks.parity_hybrids  # noqa: F401 - registers its models

    shapes = {name: tuple(t.shape) for name, t in golden.parameters.items()}
    for pattern, function in _MODELS:
        if pattern.fullmatch(golden.model):
            return function({**_from_tensors(golden), **golden.info}, shapes)
    raise unknown_name("golden model", golden.model, [pattern.pattern for pattern, _ in _MODELS])


def rebuild_from_shapes(family: str, shapes: Shapes, *, threshold: float | None = None) -> nn.Module:
    """The paper preset that a published state dict fits, from its shapes alone."""
    import medmamba.networks.parity_hybrids  # noqa: F401 - registers its models

    try:
        name, described = _PRESETS[family](shapes)
        info = {"model": name, **described}
        if threshold is not None:
            info["gfu_t"] = threshold
        return next(function(info, shapes) for pattern, function in _MODELS if pattern.fullmatch(name)).module
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        raise ConfigError(
            f"This checkpoint does not look like a {family} network: {error!r} was not found among names like "
            f"{', '.join(list(shapes)[:3])}."
        ) from None


Described = tuple[str, dict[str, Any]]  # the model's name in golden files, and the rest of its description
_PRESETS: dict[str, Callable[[Shapes], Described]] = {}


def preset(family: str) -> Callable[[Callable[[Shapes], Described]], Callable[[Shapes], Described]]:
    """Register how the description of a family's network is read from the shapes of its parameters."""

    def register(function: Callable[[Shapes], Described]) -> Callable[[Shapes], Described]:
        _PRESETS[family] = function
        return function

    return register


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that the pattern's group takes in the parameter names."""
    return 1 + max(int(found[1]) for found in (re.match(pattern, name) for name in shapes) if found)


@preset("vm_unet")
def _(shapes: Shapes) -> Described:
    return "VMUNet", {"num_classes": first(shapes, "final_conv.weight")[0]}


@preset("mhs_vm")
def _(shapes: Shapes) -> Described:
    heads = len({found[1] for found in (re.search(r"scanhead_(\w)\.", name) for name in shapes) if found})
    info = {
        "num_classes": first(shapes, "final_conv.weight")[0],
        "head_num": heads,
        "gfu_t": 0.5,  # not stored in checkpoints; the published value for ISIC 2018
        "with_proj": any(name.endswith("y_proj.weight") for name in shapes),
    }
    return "VMUNet with MHS", info


@preset("vim")
def _(shapes: Shapes) -> Described:
    return "VisionMamba", {"if_divide_out": True}


@preset("mambaout")
def _(shapes: Shapes) -> Described:
    widths = [first(shapes, f"downsample_layers.{i}.norm{'2' if i == 0 else ''}.weight")[0] for i in range(4)]
    hidden, seen = shapes["stages.0.0.fc2.weight"][1], shapes["stages.0.0.conv.weight"][0]
    info = {
        "num_classes": shapes["head.fc2.weight"][0],
        "in_chans": shapes["downsample_layers.0.conv1.weight"][1],
        "dims": widths,
        "depths": [count(shapes, rf"stages\.{i}\.(\d+)\.") for i in range(4)],
        "conv_ratio": seen / widths[0],
        "expansion_ratio": 8 / 3 if int(8 / 3 * widths[0]) == hidden else hidden / widths[0],
    }
    return "MambaOut", info


@preset("hrvmamba")
def _(shapes: Shapes) -> Described:
    return "HRVmamba multi-resolution backbone", {"in_channels": shapes["conv1.weight"][1]}


def _from_tensors(golden: Golden) -> dict[str, Any]:
    """What a description may leave out and its tensors tell."""
    output = golden.tensors.get("output")
    return {} if output is None or output.ndim < 2 else {"num_classes": output.shape[1]}


def widths_and_depths(shapes: Shapes, stages: str) -> tuple[list[int], list[int]]:
    """Width (of ``ln_1``) and number of blocks of every ``<stages>.<i>.blocks.<j>``."""
    widths: dict[int, int] = {}
    depths: dict[int, int] = {}
    for name, shape in shapes.items():
        found = re.search(rf"(?:^|\.){stages}\.(\d+)\.blocks\.(\d+)\.ln_1\.weight$", name)
        if found:
            stage, block = int(found[1]), int(found[2])
            widths[stage] = shape[0]
            depths[stage] = max(depths.get(stage, 0), block + 1)
    return [widths[i] for i in sorted(widths)], [depths[i] for i in sorted(depths)]


def first(shapes: Shapes, ending: str) -> tuple[int, ...]:
    """Shape of the first parameter whose name ends so."""
    return next(shape for name, shape in shapes.items() if name.endswith(ending))


def sigmoid_if_binary(module: nn.Module, info: dict[str, Any]) -> nn.Module:
    """The originals' wrapper returns probabilities for one class; our networks return logits."""
    if info["num_classes"] == 1:
        module.register_forward_hook(lambda _module, _inputs, output: torch.sigmoid(output))
    return module


def _ss2d(shapes: Shapes, prefix: str = "") -> SS2D:
    inner, width = shapes[prefix + "out_norm.weight"][0], shapes[prefix + "in_proj.weight"][1]
    return SS2D(
        width,
        expand=inner / width,
        state_size=shapes[prefix + "A_logs"][1],
        kernel=shapes[prefix + "conv2d.weight"][-1],
        bias=prefix + "in_proj.bias" in shapes,
    )


@model("SS2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return Subject(_ss2d(shapes), "vm_unet")


@model("VSSBlock")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return Subject(VSSBlock(shapes["ln_1.weight"][0], _ss2d(shapes, "self_attention."), eps=1e-6), "vm_unet")


@model("PatchEmbed2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width, channels, *stride = shapes["proj.weight"]
    return Subject(PatchEmbed(channels, width, stride), "vm_unet")


@model("PatchMerging2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    out, joined = shapes["reduction.weight"]
    return Subject(PatchMerging(joined // 4, out, (2, 2)), "vm_unet")


@model("(Final_)?PatchExpand2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    cells, width = shapes["expand.weight"]
    out = shapes["norm.weight"][0]
    edge = round((cells // out) ** 0.5)
    return Subject(PatchExpand(width, out, (edge, edge)), "vm_unet")


@model("VMUNet")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    state_size = first(shapes, "A_logs")[1] if shapes else int(info.get("d_state", 16))
    net = PublishedVMUNet(**_unet_arguments(info, shapes), state_size=state_size)
    return Subject(sigmoid_if_binary(net, info), "vm_unet", network=True, original=_original_vm_unet)


def _unet_arguments(info: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Arguments of the U shape, from the parameters or, at published size, from the description."""
    if not shapes:
        return {
            "in_channels": 3,
            "out_channels": info["num_classes"],
            "depths": info["depths"],
            "decoder_depths": info["depths_decoder"],
        }
    widths, depths = widths_and_depths(shapes, "layers")
    return {
        "in_channels": first(shapes, "patch_embed.proj.weight")[1],
        "out_channels": info["num_classes"],
        "widths": widths,
        "depths": depths,
        "decoder_depths": widths_and_depths(shapes, "layers_up")[1],
    }


def _original_vm_unet(name: str) -> str:
    name = re.sub(r"\.scan\.(?=[^.]+$)", ".", name).replace("self_attention.conv.", "self_attention.conv2d.")
    return "vmunet." + name


class _MHSSubject(Subject):
    """MHS-VM's heads: the original keeps them channels-first and flat, and stacks the routes before the fusion."""

    def module_name(self, original: str) -> str:
        original = re.sub(r"scanhead_(\w)\.scanning$", r"heads.\1.scan", original)
        return re.sub(r"scanhead_(\w)$", r"heads.\1", original.removeprefix("vmunet."))

    def intermediate(self, name: str, output: Tensor) -> Tensor:
        if name.endswith(".scanning"):
            return output.permute(0, 2, 3, 1)  # (B, L, K, S) to (B, K, S, L)
        if "scanhead_" in name:
            return output.flatten(1, -2).mT  # (B, *grid, S) to (B, S, L)
        return output


def _mhs(info: dict[str, Any], width: int, joined: bool) -> MultiHeadScan:
    heads = "".join(HEADS)[: info["head_num"]]
    return MultiHeadScan(width, heads=heads, threshold=info["gfu_t"], projection=joined)


@model("VSS(Un)?Gated?")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width = shapes["out_norm.weight"][0]
    mhs = _mhs(info, width, "mhs.y_proj.weight" in shapes)
    return _MHSSubject(MHSMixer(width, mhs, gated="in_proj.weight" in shapes), "mhs_vm")


@model("VMUNet with MHS( module)?")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    joined = info.get("with_proj", True)
    net = PublishedVMUNet(
        **_unet_arguments(info, shapes), mixer=lambda width: MHSMixer(width, _mhs(info, width, joined))
    )
    return _MHSSubject(sigmoid_if_binary(net, info), "mhs_vm", network=True, original=_original_mhs)


def _original_mhs(name: str) -> str:
    name = re.sub(r"mhs\.heads\.(\w)\.scan\.", r"mhs.scanhead_\1.mambaeng.", name)
    return _original_vm_unet(name.replace("mhs.x_ssproj.weight", "mhs.x_ssproj_W"))


@model("GatedCNNBlock")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width = shapes["norm.weight"][0]
    return Subject(GatedCNNBlock(width, **_gated_arguments(info, shapes)), "mambaout")


def _gated_arguments(info: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    arguments = {"expansion": info.get("expansion_ratio", 8 / 3), "conv_ratio": info.get("conv_ratio", 1.0)}
    kernels = [shape[-1] for name, shape in shapes.items() if re.search(r"(^|stages\S*\.)conv\.weight$", name)]
    return arguments | {"kernel": kernels[0] if kernels else info.get("kernel_size", 7)}


@model("MambaOut.*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    size = next((size for size in SIZES if size in info["model"].lower()), "tiny")
    net = PublishedMambaOut(
        info.get("in_chans", 3),
        info["num_classes"],
        info.get("dims", SIZES[size][1]),
        info.get("depths", SIZES[size][0]),
        **_gated_arguments(info, shapes),
    )
    return Subject(net, "mambaout", network=True)


@model("Mamba mixer.*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width = shapes["out_proj.weight"][0]
    return Subject(
        BidirectionalMamba(
            width,
            state_size=shapes["A_log"][1],
            expand=shapes["out_proj.weight"][1] / width,
            kernel=shapes["conv1d.weight"][-1],
            directions=info.get("bimamba_type", "none"),
            divide=info.get("if_divide_out", False),
            layer_scale=0.0 if "gamma" in shapes else None,
            bias="in_proj.bias" in shapes,
        ),
        "vim",
    )


class _VimSubject(Subject):
    """The original's blocks return (hidden, residual) and so do ours; files hold the first."""

    def intermediate(self, name: str, output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output


@model("VisionMamba")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    classed = "cls_token" in shapes
    net = PublishedVim(
        channels,
        shapes["head.weight"][0],
        width,
        count(shapes, r"layers\.(\d+)\."),
        tokens=shapes["pos_embed"][1] - int(classed),
        patch=patch,
        stride=info.get("stride", patch),
        state_size=first(shapes, "A_log")[1],
        class_token=classed,
        rms_norm="norm_f.bias" not in shapes,
        divide=info.get("if_divide_out", False),
        directions=info.get("bimamba_type", "v2"),
    )
    return _VimSubject(net, "vim", network=True)


@model("Vim tiny.*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return _VimSubject(PublishedVim(classes=info["num_classes"]), "vim", network=True, original=_original_vim)


def _original_vim(name: str) -> str:
    name = re.sub(r"forwards\.(?:scan\.)?", "", name)
    name = re.sub(r"backwards\.(?:scan\.)?(x_proj|dt_proj|conv1d)\.", r"\1_b.", name)
    return name.replace("backwards.scan.A_log", "A_b_log").replace("backwards.scan.D", "D_b")
