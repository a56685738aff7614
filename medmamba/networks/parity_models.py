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

from medmamba.errors import unknown_name
from medmamba.networks.golden import Golden
from medmamba.networks.resample import PatchEmbed, PatchExpand, PatchMerging
from medmamba.networks.vm_unet import PublishedVMUNet
from medmamba.networks.vss import SS2D, VSSBlock
from medmamba.networks.weights import our_name


@dataclass
class Subject:
    """A rebuilt model and how to speak about it in the original's words.

    Attributes:
        network: a whole network (its tolerances are wider than a block's).
        inputs: keys of the tensors the model takes.
        prefix: what the original puts before every parameter name.
    """

    module: nn.Module
    network: bool = False
    inputs: tuple[str, ...] = ("input",)
    prefix: str = ""
    original: Callable[[str], str] = field(default=lambda name: name)

    def original_name(self, ours: str) -> str:
        """The original's name of our parameter ``ours`` (published sizes, whose parameters are drawn by name)."""
        return self.prefix + self.original(ours)

    def module_name(self, original: str) -> str:
        """Where the original's submodule lives here."""
        return our_name(original + ".").removesuffix(".")

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
    shapes = {name: tuple(t.shape) for name, t in golden.parameters.items()}
    for pattern, function in _MODELS:
        if pattern.fullmatch(golden.model):
            return function({**_from_tensors(golden), **golden.info}, shapes)
    raise unknown_name("golden model", golden.model, [pattern.pattern for pattern, _ in _MODELS])


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
    return Subject(_ss2d(shapes))


@model("VSSBlock")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    return Subject(VSSBlock(shapes["ln_1.weight"][0], _ss2d(shapes, "self_attention."), eps=1e-6))


@model("PatchEmbed2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    width, channels, *stride = shapes["proj.weight"]
    return Subject(PatchEmbed(channels, width, stride))


@model("PatchMerging2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    out, joined = shapes["reduction.weight"]
    return Subject(PatchMerging(joined // 4, out, (2, 2)))


@model("(Final_)?PatchExpand2D")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    cells, width = shapes["expand.weight"]
    out = shapes["norm.weight"][0]
    edge = round((cells // out) ** 0.5)
    return Subject(PatchExpand(width, out, (edge, edge)))


@model("VMUNet")
def _(info: dict[str, Any], shapes: Shapes) -> Subject:
    net = PublishedVMUNet(**_unet_arguments(info, shapes), state_size=_state_size(info, shapes))
    return Subject(
        sigmoid_if_binary(net, info), network=True, prefix="vmunet.", original=lambda name: _original_ss2d(name)
    )


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


def _state_size(info: dict[str, Any], shapes: Shapes) -> int:
    return first(shapes, "A_logs")[1] if shapes else int(info.get("d_state", 16))


def _original_ss2d(name: str) -> str:
    """Our name of a VM-UNet parameter to the original's."""
    return re.sub(r"\.scan\.(?=[^.]+$)", ".", name).replace("self_attention.conv.", "self_attention.conv2d.")
