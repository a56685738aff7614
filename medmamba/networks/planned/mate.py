"""LinGen's MATE blocks in the U-Net frame."""

from __future__ import annotations

from torch import nn

from medmamba.networks.blocks.mate import MATEBlock, MATEMixer
from medmamba.networks.blocks.residual import MLP
from medmamba.networks.planned.bounds import Count, CountOrZero, Edge, WidthRatio
from medmamba.networks.planned.registry import Rate, unet_family
from medmamba.networks.planned.stage_mixers import routes_per_stage, window_attentions
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.plans.route_sets import route_count


@unet_family("mate")
def mate(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 16,
    expand: WidthRatio = 1.0,
    head_width: Count = 8,
    review: CountOrZero = 4,
    schedule: str = "constant",
    window: Edge = None,
    mlp_ratio: WidthRatio = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """LinGen's MATE blocks: a rotary-major Mamba-2 scan with review tokens, and shifted windows (arXiv:2412.09856).

    Args:
        state_size, expand: of the scans, as for ``vm_unet``.
        head_width: channels per scan head and half of those per attention head, at least.
        review: edge of the pooled grid of review tokens; 0 for none.
        schedule: as for ``vm_unet``; a stage with one route scans its rotary order forward only.
        window, mlp_ratio: as for ``lamamba``.
        use_scan: False leaves the scans (and the review tokens) out and keeps the attention.
    """
    names = routes_per_stage(topology, "bidirectional", schedule)
    places = topology.block_places
    attention = window_attentions(topology, window, 2 * head_width)

    def block(stage: int, index: int, width: int) -> nn.Module:
        mixer = MATEMixer(
            width,
            spatial_dims=topology.spatial_dims,
            state_size=state_size,
            expand=expand,
            head_width=head_width,
            kernel=topology.kernels[stage],
            layer=places.index((stage, index)),
            review=review,
            directions=route_count(names[stage], topology.spatial_dims),
            use_scan=use_scan,
        )
        near, mlp = attention(stage, index, width), MLP(width, int(mlp_ratio * width))
        return MATEBlock(width, mixer, near, mlp, drop_path=rate(stage, index))

    return block
