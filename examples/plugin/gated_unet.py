"""A network of one's own in medmamba: one block, registered under a name, trained from any plan.

    python examples/plugin/gated_unet.py DATASET OUT --steps 100

The frame (stem, strides, skips, deep supervision, padding) is medmamba's; the family brings its block: channels-last
maps (B, *S, C) in, the same shape out. This one is a gated depthwise convolution.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

import medmamba
from medmamba.networks.blocks.maps import channels_first, channels_last, depthwise
from medmamba.networks.planned.registry import Rate, unet_family
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.plans.families import FAMILIES
from medmamba.training.config import TrainConfig


class GatedBlock(nn.Module):
    """x + out( depthwise(value) * SiLU(gate) ) of LayerNorm(x)."""

    def __init__(self, width: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value_gate = nn.Linear(width, 2 * width)
        self.conv = depthwise(width, kernel)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.value_gate(self.norm(x)).chunk(2, dim=-1)
        value = channels_last(self.conv(channels_first(value)))
        return x + self.out(value * F.silu(gate))


# Where its blocks stand in the frame: as those of MambaOut, the other family without a scan.
FAMILIES["gated_unet"] = replace(FAMILIES["mambaout"], name="gated_unet", source="an example")


@unet_family("gated_unet")
def gated_unet(topology: Topology, rate: Rate) -> BlockFactory:
    """Gated depthwise convolutions: an example of a family of one's own."""

    def block(stage: int, index: int, width: int) -> nn.Module:
        return GatedBlock(width, topology.kernels[stage])

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    run = options.output / "run"
    medmamba.plan(options.dataset, run)  # the plan's strides, widths and patch; another block
    result = medmamba.train(run, fold=0, network="gated_unet", config=TrainConfig(steps=options.steps, workers=0))
    print(f"{result.steps} steps, last loss {result.final_loss:.3f}")
    image = sorted((options.dataset / "imagesTr").glob("*.nii.gz"))[0]
    print(medmamba.Predictor.from_run(run, fast=True).predict(image).voxels)


if __name__ == "__main__":
    main()
