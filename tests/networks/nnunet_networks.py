"""The networks of nnU-Net's own package beside ours: small plans, and the names of the weights in both.

``python tests/networks/nnunet_networks.py`` renews tests/data/nnunet_networks.safetensors; it needs
dynamic-network-architectures, which the tests do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmamba.nnunet.weights import our_name

GOLDEN = Path(__file__).parent.parent / "data" / "nnunet_networks.safetensors"
NAMES = ("plain_unet", "residual_unet")
CHANNELS, CLASSES, WIDTHS = 2, 3, [2, 3, 3]
PLANS: dict[int, dict[str, Any]] = {
    2: {"strides": [[1, 1], [2, 2], [2, 1]], "kernels": [[3, 3], [3, 3], [3, 1]]},
    3: {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]},
}
BLOCKS = {"plain_unet": ([2, 1, 3], [2, 1]), "residual_unet": ([1, 2, 2], [1, 2])}
"""Blocks of the encoder's stages, convolutions of the decoder's; unlike each other, so that an exchange is seen."""


def numbers(name: str, dims: int) -> dict[str, Any]:
    """Arguments of ``build_network``."""
    blocks, convs = BLOCKS[name]
    return {
        "name": name,
        "spatial_dims": dims,
        "in_channels": CHANNELS,
        "out_channels": CLASSES,
        "features_per_stage": WIDTHS,
        "blocks_per_stage": blocks,
        "decoder_convs": convs,
        "deep_supervision": True,
        **PLANS[dims],
    }


def build_theirs(given: dict[str, Any]) -> nn.Module:
    """nnU-Net's network for our arguments, with the parts that its planners ask for."""
    from dynamic_network_architectures.architectures import unet

    dims, plain = given["spatial_dims"], given["name"] == "plain_unet"
    conv, norm = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[dims - 2]
    network = unet.PlainConvUNet if plain else unet.ResidualEncoderUNet
    return network(
        input_channels=given["in_channels"],
        num_classes=given["out_channels"],
        n_stages=len(given["strides"]),
        features_per_stage=given["features_per_stage"],
        kernel_sizes=given["kernels"],
        strides=given["strides"],
        n_conv_per_stage_decoder=given["decoder_convs"],
        conv_op=conv,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=given["deep_supervision"],
        **{"n_conv_per_stage" if plain else "n_blocks_per_stage": given["blocks_per_stage"]},
    )


def their_weights(network: nn.Module, stages: int) -> dict[str, Tensor]:
    """Their state dict under our names."""
    named = {our_name(key, stages): value for key, value in network.state_dict().items()}
    return {key: value for key, value in named.items() if key is not None}


def sample(name: str, dims: int) -> dict[str, Tensor]:
    """Random weights of their network under our names, an image, and the logits of every resolution."""
    torch.manual_seed(dims)
    network = build_theirs(numbers(name, dims))
    with torch.no_grad():
        for parameter in network.parameters():  # norms and biases, too, so that each of them counts
            parameter.copy_(0.5 * torch.randn_like(parameter))
        image = torch.randn(2, CHANNELS, *(4, 8, 8)[-dims:])
        logits = network(image)
    outputs = {f"logits.{number}": value for number, value in enumerate(logits)}
    return their_weights(network, len(WIDTHS)) | {"image": image} | outputs


def golden(name: str, dims: int) -> dict[str, Tensor]:
    """The stored sample."""
    start = f"{name}_{dims}d/"
    return {key.removeprefix(start): value for key, value in load_file(GOLDEN).items() if key.startswith(start)}


if __name__ == "__main__":
    from importlib.metadata import version

    found = {
        f"{name}_{dims}d/{key}": value.contiguous()
        for name in NAMES
        for dims in PLANS
        for key, value in sample(name, dims).items()
    }
    made_by = f"dynamic-network-architectures {version('dynamic-network-architectures')}, torch {torch.__version__}"
    save_file(found, GOLDEN, {"made by": made_by, "script": "tests/networks/nnunet_networks.py"})
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB, {made_by}")
