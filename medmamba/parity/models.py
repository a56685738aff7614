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
from medmamba.networks.blocks.mambaout import GatedCNNBlock
from medmamba.networks.blocks.mhs import HEADS, MHSMixer, MultiHeadScan
from medmamba.networks.blocks.patches import PatchEmbed, PatchExpand, PatchMerging
from medmamba.networks.blocks.vim import BidirectionalMamba
from medmamba.networks.blocks.vss import SS2D, VSSBlock
from medmamba.networks.published.mambaout import SIZES, PublishedMambaOut
from medmamba.networks.published.vim import WIDTHS, PublishedVim
from medmamba.networks.published.vm_unet import PublishedVMUNet
from medmamba.networks.published.weights import our_name
from medmamba.parity.golden import Golden


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

# What a description may say and a rebuilder need not read: bookkeeping, arguments of the originals that matter in
# training or at initialisation only (golden files are made in evaluation mode), and what the parameters' shapes tell.
_ABOUT = (
    r"model|what|notes?|source|licen[cs]e|repo\w*|commit|date|version|format|\w*seed|salt|layout|config|ctor|extra|"
    r"allow_none|\w*(shape|resolution|img_size)|num_param\w*|param_count\w*|\w*(_abs|_max|_rms|_l2|_mean|_std)|"
    r"official_\w+|f32_vs_f64_\w+|torch\w*"
)
_TRAINING = (
    r"\w*drop\w*|\w*init|dt_(min|max|scale|init_floor)|use_checkpoint|load_ckpt_path|device|dtype|norm_cfg|conv_cfg|"
    r"norm_eval|with_cp|fused_add_norm|residual_in_fp32|use_fast_path|use_mem_eff_path|layer_idx"
)
_SHAPED = (
    r"(ssm_)?(d_model|d_state|d_conv|conv|expand|ratio|dt_rank|bias|conv_bias)|hidden_dim|dims?|dim_scale|depths?|dims_decoder|"
    r"depths_decoder|embed_dim|in_chans|(in_|input_)?channels|num_classes|patch_size|bottleneck_depth|condition_dim|"
    r"unconditional|mlp_ratio|num_(modules|branches|blocks|channels|heads)|dw_kernel_size|output_bias|"
    r"(dcn_)?without_pointwise|if_cls_token|use_double_cls_token|rms_norm|bimamba_type|init_layer_scale|kernel_size|"
    r"expansion_ratio|conv_ratio|head_num|with_proj|headdim|window_size|sd_unet_decoder_design|multiscale_output"
)
_UNREAD = re.compile(f"{_ABOUT}|{_TRAINING}|{_SHAPED}")


def model(pattern: str, *takes: str, **only: tuple[object, ...]) -> Callable[[Rebuilder], Rebuilder]:
    """Register a rebuilder for the model names that match ``pattern`` completely.

    Args:
        takes: options that the rebuilder reads from the description.
        only: options of which only these values are known here.
    """

    def register(function: Rebuilder) -> Rebuilder:
        def checked(info: dict[str, Any], shapes: Shapes) -> Subject:
            _check_options(info, {*takes, *only}, only)
            return function(info, shapes)

        _MODELS.append((re.compile(pattern), checked))
        return function

    return register


def _check_options(info: dict[str, Any], takes: set[str], only: dict[str, tuple[object, ...]]) -> None:
    """An option that would be ignored is an error: the numbers would be compared with those of another model."""
    name, extra = info["model"], info.get("extra", {})
    stages = [stage for stage in extra.values() if isinstance(stage, dict) and "block" in stage]
    for key, value in (item for part in (info, info.get("ctor", {}), extra, *stages) for item in part.items()):
        if key in only and value not in only[key]:
            valid = " or ".join(repr(one) for one in only[key])
            raise ConfigError(f"Option {key!r} of golden model {name!r} is {value!r}; known here is {valid}.")
        if key not in takes and not _UNREAD.fullmatch(key) and value not in stages:
            raise ConfigError(f"Golden model {name!r} has the option {key!r} ({value!r}), which is not known here.")


def rebuild(golden: Golden) -> Subject:
    """The model of a golden file. Raises ConfigError for an unknown model, an unknown option, or a lacking one."""
    import medmamba.parity.hybrids  # noqa: F401 - registers its models

    shapes = {name: tuple(t.shape) for name, t in golden.parameters.items()}
    for pattern, function in _MODELS:
        if pattern.fullmatch(golden.model):
            try:
                return function({**_from_tensors(golden), **golden.info}, shapes)
            except (KeyError, IndexError, StopIteration, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{golden.model} cannot be rebuilt: {type(error).__name__} {error} in what the file says of it."
                ) from None
    raise unknown_name("golden model", golden.model, [pattern.pattern for pattern, _ in _MODELS])


def rebuild_from_shapes(family: str, shapes: Shapes, *, threshold: float | None = None) -> nn.Module:
    """The paper preset that a published state dict fits, from its shapes alone."""
    import medmamba.parity.hybrids  # noqa: F401 - registers its models

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
    return 1 + max((int(found[1]) for found in (re.match(pattern, name) for name in shapes) if found), default=-1)


@preset("vm_unet")
def _(shapes: Shapes) -> Described:
    return "VMUNet", {"num_classes": first(shapes, "final_conv.weight")[0]}


@preset("mhs_vm")
def _(shapes: Shapes) -> Described:
    threshold = 0.5  # not stored in checkpoints; the published value for ISIC 2018
    return "VMUNet with MHS", {"num_classes": first(shapes, "final_conv.weight")[0], "gfu_t": threshold}


@preset("vim")
def _(shapes: Shapes) -> Described:
    return "VisionMamba", {"if_divide_out": True, "use_middle_cls_token": True, "final_pool_type": "mean"}


@preset("mambaout")
def _(shapes: Shapes) -> Described:
    stages = count(shapes, r"downsample_layers\.(\d+)\.")
    info = {
        "num_classes": shapes["head.fc2.weight"][0],
        "in_chans": shapes["downsample_layers.0.conv1.weight"][1],
        "dims": [first(shapes, f"downsample_layers.{i}.norm{'' if i else '2'}.weight")[0] for i in range(stages)],
        "depths": [count(shapes, rf"stages\.{i}\.(\d+)\.") for i in range(stages)],
        **_gated_shape(shapes, "stages.0.0."),
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


def by_width(shapes: Shapes, norm: str, mixer: str) -> dict[int, str]:
    """Prefix of one block's mixer for every width among the blocks; ``norm`` and ``mixer`` are names in a block."""
    blocks = {name.partition(f".{mixer}.")[0] for name in shapes if f".{mixer}." in name}
    return {shapes[f"{block}.{norm}.weight"][0]: f"{block}.{mixer}." for block in blocks}


def ss2d(shapes: Shapes, prefix: str = "", **options: Any) -> SS2D:
    """The mixer whose parameters begin with ``prefix``."""
    inner, width = shapes[prefix + "out_norm.weight"][0], shapes[prefix + "in_proj.weight"][1]
    return SS2D(
        width,
        expand=inner / width,
        state_size=shapes[prefix + "A_logs"][1],
        kernel=shapes[prefix + "conv2d.weight"][-1],
        bias=prefix + "in_proj.bias" in shapes,
        conv_bias=prefix + "conv2d.bias" in shapes,
        dt_rank=shapes[prefix + "dt_projs_weight"][-1],
        **options,
    )


@model("SS2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return Subject(ss2d(shapes), "vm_unet")


@model("VSSBlock")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return Subject(VSSBlock(shapes["ln_1.weight"][0], ss2d(shapes, "self_attention."), eps=1e-6), "vm_unet")


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
    prefixes = by_width(shapes, "ln_1", "self_attention")
    state_size = int(info.get("d_state", 16))  # of a published size, whose parameters are not stored
    net = _u_shape(
        info,
        shapes,
        lambda width: ss2d(shapes, prefixes[width]) if shapes else SS2D(width, state_size=state_size),
    )
    return Subject(net, "vm_unet", network=True, original=_original_vm_unet)


def _u_shape(info: dict[str, Any], shapes: Shapes, mixer: Callable[[int], nn.Module]) -> nn.Module:
    """The U shape, with numbers from the parameters or, at published size, from the description."""
    if shapes:
        widths, depths = widths_and_depths(shapes, "layers")
        decoder_depths = widths_and_depths(shapes, "layers_up")[1]
        channels = first(shapes, "patch_embed.proj.weight")[1]
    else:
        channels, widths = 3, info.get("dims", [96, 192, 384, 768])
        depths, decoder_depths = info["depths"], info["depths_decoder"]
    net = PublishedVMUNet(channels, info["num_classes"], widths, depths, decoder_depths, mixer=mixer)
    net.total_stride = (1, 1)  # the original pads nothing: what the strides leave over is cut
    return sigmoid_if_binary(net, info)


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


def _mhs_mixer(shapes: Shapes, prefix: str, threshold: float) -> MHSMixer:
    """The mixer whose parameters begin with ``prefix``."""
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
    kernel = shapes[prefix + "conv2d.weight"][-1]
    return MHSMixer(width, mhs, kernel=kernel, gated=prefix + "in_proj.weight" in shapes)


@model("VSS(Un)?Gated?", "gfu_t")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return _MHSSubject(_mhs_mixer(shapes, "", info["gfu_t"]), "mhs_vm")


@model("VMUNet with MHS( module)?", "gfu_t")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    prefixes = by_width(shapes, "ln_1", "self_attention")

    def mixer(width: int) -> nn.Module:
        if shapes:
            return _mhs_mixer(shapes, prefixes[width], info["gfu_t"])
        heads = "".join(HEADS)[: info["head_num"]]
        joined = info.get("with_proj", True)
        states = int(info.get("d_state", 16))
        mhs = MultiHeadScan(width, heads=heads, threshold=info["gfu_t"], projection=joined, state_size=states)
        return MHSMixer(width, mhs)

    return _MHSSubject(_u_shape(info, shapes, mixer), "mhs_vm", network=True, original=_original_mhs)


def _original_mhs(name: str) -> str:
    name = re.sub(r"mhs\.heads\.(\w)\.scan\.", r"mhs.scanhead_\1.mambaeng.", name)
    return _original_vm_unet(name.replace("mhs.x_ssproj.weight", "mhs.x_ssproj_W"))


@model("GatedCNNBlock")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return Subject(GatedCNNBlock(shapes["norm.weight"][0], **_gated({**_gated_shape(shapes), **info})), "mambaout")


def _gated_shape(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """A gated block's options from its parameters; 8/3 if that is what they were cut from."""
    width, hidden = shapes[prefix + "fc2.weight"]
    seen, *_, kernel = shapes[prefix + "conv.weight"]
    expansion = 8 / 3 if int(8 / 3 * width) == hidden else _ratio(hidden, width)
    return {"expansion_ratio": expansion, "conv_ratio": _ratio(seen, width), "kernel_size": kernel}


def _ratio(part: int, whole: int) -> float:
    """A factor of which ``int(factor * whole)`` is ``part``."""
    return part / whole if int(part / whole * whole) == part else (part + 0.5) / whole


def _gated(info: dict[str, Any]) -> dict[str, Any]:
    names = {"expansion": "expansion_ratio", "conv_ratio": "conv_ratio", "kernel": "kernel_size"}
    return {ours: info[original] for ours, original in names.items() if original in info}


@model("MambaOut.*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    if shapes:
        info = {**_PRESETS["mambaout"](shapes)[1], **info}
    size = next((size for size in SIZES if size in info["model"].lower()), "tiny")
    depths, widths, _ = SIZES[size]
    net = PublishedMambaOut(
        info.get("in_chans", 3),
        info["num_classes"],
        info.get("dims", widths),
        info.get("depths", depths),
        **_gated(info),
    )
    return Subject(net, "mambaout", network=True)


def _mixer(info: dict[str, Any], shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """Arguments of the Mamba mixer whose parameters begin with ``prefix``."""
    width, inner = shapes[prefix + "out_proj.weight"]
    both = "v2" if prefix + "conv1d_b.weight" in shapes else "v1"
    return {
        "state_size": shapes[prefix + "A_log"][1],
        "expand": inner / width,
        "kernel": shapes[prefix + "conv1d.weight"][-1],
        "directions": both if prefix + "A_b_log" in shapes else "none",
        "divide": info.get("if_divide_out", False),
        "layer_scale": 0.0 if prefix + "gamma" in shapes else None,
        "bias": prefix + "in_proj.bias" in shapes,
        "conv_bias": prefix + "conv1d.bias" in shapes,
        "dt_rank": shapes[prefix + "dt_proj.weight"][1],
    }


@model("Mamba mixer.*", "if_divide_out")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return Subject(BidirectionalMamba(shapes["out_proj.weight"][0], **_mixer(info, shapes)), "vim")


class _VimSubject(Subject):
    """The original's blocks return (hidden, residual) and so do ours; files hold the first."""

    def intermediate(self, name: str, output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output


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
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    if "cls_token" in shapes:
        token, extra = "middle" if info.get("use_middle_cls_token", False) else "head", 1
    else:
        token, extra = ("both", 2) if "cls_token_head" in shapes else ("none", 0)
    net = PublishedVim(
        channels,
        shapes["head.weight"][0],
        width,
        count(shapes, r"layers\.(\d+)\."),
        tokens=shapes["pos_embed"][1] - extra,
        patch=patch,
        stride=info.get("stride", patch),
        class_token=token,
        pool="mean" if info.get("final_pool_type", "none") == "mean" else "last",
        rms_norm="norm_f.bias" not in shapes,
        **_mixer(info, shapes, "layers.0.mixer."),
    )
    return _VimSubject(net, "vim", network=True)


@model("Vim (tiny|small|base).*")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    net = PublishedVim(classes=info["num_classes"], width=WIDTHS[info["model"].split()[1]])
    return _VimSubject(net, "vim", network=True, original=_original_vim)


def _original_vim(name: str) -> str:
    name = re.sub(r"forwards\.(?:scan\.)?", "", name)
    name = re.sub(r"backwards\.(?:scan\.)?(x_proj|dt_proj|conv1d)\.", r"\1_b.", name)
    return name.replace("backwards.scan.A_log", "A_b_log").replace("backwards.scan.D", "D_b")
