"""The convolution baselines beside the blocks of MONAI's DynUNet, whose names and arithmetic they share."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet

from medmamba.networks.build import build_network

PLANS = {
    2: {"strides": [[1, 1], [2, 2], [2, 1]], "kernels": [[3, 3], [3, 3], [3, 1]]},
    3: {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]},
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["plain_unet", "residual_unet"])
def test_weights_of_dynunet_give_its_logits(name, dims):
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
    own = build_network(
        name,
        spatial_dims=dims,
        in_channels=2,
        out_channels=3,
        features_per_stage=[8, 12, 16],
        deep_supervision=False,
        **numbers,
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
    own.load_state_dict(state)
    x = torch.randn(2, 2, *(8, 16, 16)[-dims:])
    with torch.no_grad():
        assert torch.equal(own(x), peer(x))


def test_initial_weights_have_the_spread_of_dynunet():
    torch.manual_seed(0)
    network = build_network(
        "plain_unet", spatial_dims=3, in_channels=1, out_channels=2, features_per_stage=[32, 64, 64], **PLANS[3]
    )
    convolution = network.encoder[1].conv2.conv
    expected = (2 / (1 + 0.01**2) / (64 * 27)) ** 0.5
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.02)
