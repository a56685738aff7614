"""VM-UNet as published: a pure scan U-Net on 4 x 4 patches.

Source: Ruan and Xiang 2024, VM-UNet: Vision Mamba UNet for medical image segmentation (arXiv:2402.02491), and its
public code. docs/reference/network-vm-unet.md lists what is kept unchanged, because published weights depend on it.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from medmamba.networks.blocks.maps import crop_to, pad_to_multiple
from medmamba.networks.blocks.patches import Level, PatchEmbed, PatchExpand, PatchMerging
from medmamba.networks.blocks.residual import rising_rates, truncated_normal
from medmamba.networks.blocks.vss import SS2D, VSSBlock
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import Topology

# Named sizes: (encoder depths, decoder depths). Parameters with width 96, N 16 and one class are in brackets.
DEPTHS = {
    "released": ((2, 2, 2, 2), (2, 2, 2, 1)),  # ISIC and Synapse configuration files (27,427,561)
    "large": ((2, 2, 9, 2), (2, 9, 2, 2)),  # the constructor's defaults (44,273,833)
}


class PublishedVMUNet(nn.Module):
    """(B, in, H, W) to logits (B, out, H, W).

    Args:
        in_channels: channels of the embedding; 1-channel images are repeated if this is 3.
        depths, decoder_depths: blocks per stage; the decoder's are listed from deep to shallow.
        drop_path: largest stochastic-depth rate; rises along the encoder, falls along the decoder.
        mixer: width -> token mixer; SS2D by default (MHS-VM puts its own here).
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = DEPTHS["released"][0],
        decoder_depths: Sequence[int] = DEPTHS["released"][1],
        *,
        state_size: int = 16,
        drop_path: float = 0.2,
        mixer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        mixer = mixer or (lambda width: SS2D(width, state_size=state_size))
        self.in_channels = in_channels
        self.total_stride = (4 * 2 ** (len(widths) - 1),) * 2

        def blocks(width: int, rates: Sequence[float]) -> list[nn.Module]:
            return [VSSBlock(width, mixer(width), drop_path=rate) for rate in rates]

        rising = iter(rising_rates(drop_path, sum(depths)))
        falling = iter(rising_rates(drop_path, sum(decoder_depths))[::-1])
        self.patch_embed = PatchEmbed(in_channels, widths[0], (4, 4))
        self.layers = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            merge = PatchMerging(width, widths[i + 1], (2, 2)) if i + 1 < len(widths) else None
            self.layers.append(Level(blocks(width, [next(rising) for _ in range(depth)]), downsample=merge))
        self.layers_up = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(reversed(widths), decoder_depths, strict=True)):
            expand = PatchExpand(widths[-i], width, (2, 2)) if i else None
            self.layers_up.append(Level(blocks(width, [next(falling) for _ in range(depth)]), upsample=expand))
        self.final_up = PatchExpand(widths[0], widths[0] // 4, (4, 4))
        self.final_conv = nn.Conv2d(widths[0] // 4, out_channels, 1)
        truncated_normal(self, nn.Linear)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] == 1 and self.in_channels == 3:
            image = image.expand(-1, 3, -1, -1)
        x = self.patch_embed(pad_to_multiple(image, self.total_stride))  # (B, H/4, W/4, C)
        skips = []
        for stage in self.layers:
            skips.append(x)
            x = stage(x)
        for i, stage in enumerate(self.layers_up):
            x = stage(x if i == 0 else x + skips[-i])
        logits = self.final_conv(self.final_up(x).movedim(-1, 1))
        return crop_to(logits, image.shape[2:])


# The released network as numbers of a plan.
NUMBERS = {
    "stem": "patch",
    "strides": [[4, 4], [2, 2], [2, 2], [2, 2]],
    "features_per_stage": [96, 192, 384, 768],
    "blocks_per_stage": list(DEPTHS["released"][0]),
    "kernels": None,
    "deep_supervision": False,
}


@network("vm_unet_published", planar=True, published=NUMBERS)
def vm_unet_published(topology: Topology, *, use_scan: bool = True) -> nn.Module:
    """VM-UNet as published, trained for the sake of its pretrained weights (arXiv:2402.02491)."""
    channels = 3 if topology.in_channels == 1 else topology.in_channels  # its weights are for colour
    widths, depths = topology.features_per_stage, topology.blocks_per_stage
    return PublishedVMUNet(
        channels, topology.out_channels, widths, depths, mixer=lambda width: SS2D(width, use_scan=use_scan)
    )
