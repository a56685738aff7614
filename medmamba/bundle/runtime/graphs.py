"""The patch network as one file: TorchScript, torch.export or ONNX; run as ``python -m scripts.graphs FORMAT``.

All three hold the network at the patch size of the plan, with any batch size. Routes and chunks of a scan depend on
the size of the map, so another patch size needs another file. The operators are torch's own: a process that has only
torch (or onnxruntime) runs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.kernels import chunked
from medmamba.networks import convolution
from medmamba.networks import routes as route_tables

FILES = {"torchscript": "model.ts", "torch-export": "model.pt2", "onnx": "model.onnx"}
BATCHES = (1, 2, 3)
MOST_IN_A_BATCH = 64


def main(kind: str) -> None:
    """Write models/<file of the format> of the bundle in the current folder, and trial inputs with their logits."""
    if "medmamba.kernels" in sys.modules:
        raise RuntimeError("An export needs the plain torch operators; run it where medmamba cannot be imported.")
    _leave_no_python_in_the_graph()
    config = json.loads(Path("configs/inference.json").read_text())
    numbers = config["network_def"]
    network = SegmentationNetwork(numbers["folds"], numbers["arguments"])
    network.load_state_dict(torch.load("models/model.pt", weights_only=True))
    network.eval().requires_grad_(False)
    shape = (numbers["arguments"]["in_channels"], *config["plan"]["patch_size"])
    make = torch.Generator().manual_seed(0)
    trials = {f"image_{batch}": torch.randn(batch, *shape, generator=make) for batch in BATCHES}
    with torch.no_grad():
        trials |= {name.replace("image", "logits"): network(image) for name, image in list(trials.items())}
        _write(kind, network, trials["image_2"], Path("models", FILES[kind]))
    torch.save(trials, sys.argv[2])


def _write(kind: str, network: torch.nn.Module, example: Tensor, path: Path) -> None:
    if kind == "torchscript":
        torch.jit.trace(network, example, check_trace=False).save(path)
        return
    batch = torch.export.Dim("batch", min=1, max=MOST_IN_A_BATCH)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
    if kind == "torch-export":
        torch.export.save(program, path)
        return
    written: Any = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
    )
    written.save(path)


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
    chunked.CHUNK_ELEMENTS = 1 << 60


if __name__ == "__main__":
    main(sys.argv[1])
