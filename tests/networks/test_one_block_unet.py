"""Convolution U-Nets of earlier versions are still rebuilt: DynUNet's weights give DynUNet's logits to the bit."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet

from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.networks.build import available_networks, rebuild_network
from medmamba.networks.planned.one_block_unet import ONE_BLOCK

PLANS = {
    2: {"strides": [[1, 1], [2, 2], [2, 1]], "kernels": [[3, 3], [3, 3], [3, 1]]},
    3: {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]},
}
every_network = pytest.mark.parametrize("name", ONE_BLOCK)


def stored(name: str, dims: int) -> dict:
    """Arguments as a model.json of an earlier version has them: with blocks that were not built, without decoder."""
    numbers = {"spatial_dims": dims, "in_channels": 2, "out_channels": 3, "features_per_stage": [8, 12, 16]}
    return {"name": name, **numbers, **PLANS[dims], "blocks_per_stage": [1, 3, 4], "deep_supervision": False}


@pytest.mark.parametrize("dims", [2, 3])
@every_network
def test_weights_of_dynunet_give_its_logits(name: str, dims: int) -> None:
    torch.manual_seed(0)
    numbers = PLANS[dims]
    peer = DynUNet(
        spatial_dims=dims,
        in_channels=2,
        out_channels=3,
        kernel_size=numbers["kernels"],
        strides=numbers["strides"],
        upsample_kernel_size=numbers["strides"][1:],
        filters=[8, 12, 16],
        norm_name=("INSTANCE", {"affine": True}),
        res_block=name == "residual_unet",
    ).eval()
    parts = {
        "encoder": [peer.input_block, *peer.downsamples, peer.bottleneck],
        "decoder": list(peer.upsamples),
        "heads": [peer.output_block.conv.conv],
    }
    state = {
        f"{part}.{index}.{key}": value
        for part, blocks in parts.items()
        for index, block in enumerate(blocks)
        for key, value in block.state_dict().items()
    }
    own = rebuild_network(stored(name, dims)).eval()
    own.load_state_dict(state)
    x = torch.randn(2, 2, *(8, 16, 16)[-dims:])
    with torch.no_grad():
        assert torch.equal(own(x), peer(x))


@every_network
def test_a_bundle_of_before_is_rebuilt_and_scripted(name: str) -> None:
    network = SegmentationNetwork(1, stored(name, 2))
    x = torch.randn(1, 2, 13, 9)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(x), network(x))


def test_networks_of_before_are_not_offered() -> None:
    assert not set(ONE_BLOCK.values()) & set(available_networks())
