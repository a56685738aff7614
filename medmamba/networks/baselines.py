"""The convolution networks that every comparison is made against, from the same plan.

nnU-Net's topology (Isensee et al. 2021, arXiv:1904.08128), plain or with residual blocks, built from the blocks of
MONAI's DynUNet with the plan's strides, widths and kernels. DynUNet itself is only the workshop: it registers every
block twice, and it upsamples its deep-supervision outputs into one tensor, where the planned networks return a list
from fine to coarse, each at its own resolution.
"""

from __future__ import annotations

from monai.networks.nets import DynUNet
from torch import Tensor, nn

from medmamba.networks.padding import crop_to, pad_to_multiple
from medmamba.networks.registry import network
from medmamba.networks.unet import Topology
from medmamba.networks.vss import CONV


@network("plain_unet", full_resolution_only=True, min_stages=3)
def plain_unet(topology: Topology) -> nn.Module:
    """nnU-Net's default network: two convolutions per stage."""
    return ConvUNet(topology, residual=False)


@network("residual_unet", full_resolution_only=True, min_stages=3)
def residual_unet(topology: Topology) -> nn.Module:
    """The same with one residual block of two convolutions per stage."""
    return ConvUNet(topology, residual=True)


class ConvUNet(nn.Module):
    """nnU-Net's topology with the interface of :class:`~medmamba.networks.unet.PlannedUNet`."""

    def __init__(self, topology: Topology, *, residual: bool) -> None:
        super().__init__()
        t = topology
        self.topology = t
        self.out_channels = t.out_channels
        self.total_stride = t.total_stride
        self.deep_supervision = t.deep_supervision
        parts = DynUNet(
            spatial_dims=t.spatial_dims,
            in_channels=t.in_channels,
            out_channels=t.out_channels,
            kernel_size=t.kernels,
            strides=t.strides,
            upsample_kernel_size=t.strides[1:],
            filters=t.features_per_stage,
            norm_name=("INSTANCE", {"affine": True}),
            res_block=residual,
        )
        self.encoder = nn.ModuleList([parts.input_block, *parts.downsamples, parts.bottleneck])
        self.decoder = parts.upsamples  # deep to shallow
        heads = t.features_per_stage[:-1] if t.deep_supervision else t.features_per_stage[:1]
        self.heads = nn.ModuleList(CONV[t.spatial_dims](width, t.out_channels, 1) for width in heads)

    @property
    def output_count(self) -> int:
        """Number of logits that training returns: 1 without deep supervision."""
        return len(self.heads)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        x = padded = _with_variance(pad_to_multiple(image, self.total_stride), self.total_stride)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        features = []
        for stage in self.decoder:
            x = stage(x, skips.pop())
            features.append(x)
        features.reverse()
        if not (self.training and self.deep_supervision):
            return crop_to(self.heads[0](features[0]), image.shape[2:])
        outputs = []
        for head, feature in zip(self.heads, features, strict=True):
            scale = [n // f for n, f in zip(padded.shape[2:], feature.shape[2:], strict=True)]
            outputs.append(crop_to(head(feature), [-(-n // s) for n, s in zip(image.shape[2:], scale, strict=True)]))
        return outputs


def _with_variance(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The padded input, twice as long where the bottleneck would be one voxel: a single value has no variance."""
    if tuple(x.shape[2:]) != tuple(stride):
        return x
    return pad_to_multiple(x, (*stride[:-1], 2 * stride[-1]))
