"""Shipped in bundles: the patch network as one file of TorchScript, torch.export or ONNX.

Run as ``python -m scripts.graphs FORMAT FILE TRIALS``.

TorchScript is scripted and takes any patch and batch size (see ``scripted.py``); a family that cannot be scripted is
traced at the patch size of the plan. It holds metadata.json and inference.json, as MONAI's clients expect.
torch.export and ONNX take any batch size, and without scans any multiple of the strides; of a scan they write down
every step, which holds it at the plan's patch size.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from torch import Tensor

from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.bundle.runtime.scripted import NotScriptable
from medmamba.bundle.runtime.weights import load_weights
from medmamba.kernels.scan import reference
from medmamba.networks import routes as route_tables
from medmamba.networks.blocks import convolution
from medmamba.networks.build import network_facts

METADATA, CONFIGURATION = "configs/metadata.json", "configs/inference.json"
FILES = {"torchscript": "model.ts", "torch-export": "model.pt2", "onnx": "model.onnx"}


def main(kind: str, target: str, trials: str) -> None:
    """Write the network of the bundle in the current folder to ``target``, and to ``trials`` inputs with their logits.

    The stem of ``target`` has to be "model": clients look for it inside a TorchScript file.
    """
    if "medmamba.kernels" in sys.modules:
        raise RuntimeError("An export needs the plain torch operators; run it where medmamba cannot be imported.")
    _leave_no_python_in_the_graph()
    config = json.loads(Path(CONFIGURATION).read_text(encoding="utf-8"))
    numbers = config["network_def"]
    network = SegmentationNetwork(numbers["folds"], numbers["arguments"])
    load_weights(network, "models/model.pt")
    network.eval().requires_grad_(False)
    patch, channels = tuple(config["plan"]["patch_size"]), numbers["arguments"]["in_channels"]
    scans = network_facts(numbers["arguments"]["name"]).has_scan and numbers["arguments"].get("use_scan", True)
    written = _write(kind, network, (channels, *patch), target, any_patch=not scans)
    larger = tuple(edge + stride for edge, stride in zip(patch, _stride(network), strict=True))
    if written == "scripted":
        shapes = [(1, *patch), (2, *(edge - 1 for edge in larger))]
    else:
        shapes = [(batch, *patch) for batch in (1, 2, 3)]
        if written == "exported" and not scans:
            shapes.append((1, *larger))
    images = [_noise((batch, channels, *size)) for batch, *size in shapes]
    with torch.no_grad():
        torch.save([(image, network(image)) for image in images], trials)


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _stride(network: SegmentationNetwork) -> tuple[int, ...]:
    return tuple(int(n) for n in network.members[0].total_stride)  # type: ignore[union-attr]


def _write(kind: str, network: SegmentationNetwork, shape: tuple[int, ...], path: str, *, any_patch: bool) -> str:
    """Write the file; says how the graph was made. ``any_patch``: leave the edges open in torch.export and ONNX."""
    if kind == "torchscript":
        try:
            written, graph = "scripted", torch.jit.script(network)
        except NotScriptable as reason:
            print(f"traced, because {reason.part} cannot be scripted")
            written, graph = "traced", torch.jit.trace(network, _example(network, shape), check_trace=False)
        metadata = json.loads(Path(METADATA).read_text(encoding="utf-8"))
        beside = {Path(CONFIGURATION).name: Path(CONFIGURATION).read_bytes()}
        save_net_with_metadata(graph, path, False, meta_values=metadata, more_extra_files=beside)
        return written
    example = _example(network, shape)
    open_sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    if any_patch:  # not a single voxel at the bottom: that takes another way through the network
        for axis, stride in enumerate(_stride(network)):
            multiple = torch.export.Dim(f"multiple_{axis}", min=2, max=512)
            open_sizes[2 + axis] = stride * multiple if stride > 1 else multiple
    program = torch.export.export(network, (example,), dynamic_shapes=(open_sizes,), strict=False)
    if kind == "torch-export":
        torch.export.save(program, path)
        return "exported"
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(program, dynamo=True, verbose=False, **names).save(path)  # type: ignore[union-attr]
    return "exported"


def _example(network: SegmentationNetwork, shape: tuple[int, ...]) -> Tensor:
    """Two images; the route tables of this patch are made now, and not inside a graph."""
    example = _noise((2, *shape))
    with torch.no_grad():
        network(example)
    return example


def _leave_no_python_in_the_graph() -> None:
    """Route tables become constants, and the norm its plain formula; chunks do not depend on the batch."""

    def table(name: str, shape: list[int], device: str, count: int) -> Tensor:
        return route_tables._cached(name, tuple(shape), device)

    def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        rstd = torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)
        return torch.addcmul(bias, centred, weight * rstd)

    route_tables._route_table = table  # type: ignore[assignment]
    convolution._NormaliseTokens.apply = staticmethod(norm)  # type: ignore[method-assign]
    reference.CHUNK_ELEMENTS = 1 << 60


if __name__ == "__main__":
    main(*sys.argv[1:])
