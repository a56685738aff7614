"""Exact measurement of a training step: the peak of the bytes that torch holds, not what the system grants it.

The resident size of a process also holds what the C library keeps after torch gave it back, which varies by a third
between runs; the live bytes are the same in every run and on every machine.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from medmamba.models.output_channels import OutputChannels
from medmamba.networks.build import build_network, network_facts
from medmamba.plans.schema import NetworkPlan
from medmamba.training.losses import DeepSupervision, SegmentationLoss


def build(network: NetworkPlan, in_channels: int, out_channels: int) -> nn.Module:
    """The network of a plan, as training builds it."""
    known = network_facts(network.name).options
    options = {name: getattr(network, name) for name in ("state_size", "routes", "use_scan") if name in known}
    if network.decoder_convs is not None:
        options["decoder_convs"] = network.decoder_convs
    return build_network(
        network.name,
        spatial_dims=network.spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=network.strides,
        features_per_stage=network.features_per_stage,
        blocks_per_stage=network.blocks_per_stage,
        kernels=network.kernel_sizes,
        stem=network.stem,
        deep_supervision=network.deep_supervision,
        **options,
    )


def peak_bytes(
    network: NetworkPlan, patch_size: Sequence[int], *, in_channels: int, out_channels: int, batch_size: int
) -> int:
    """Largest number of bytes held at once in a training step with AdamW, weights and optimiser included."""
    model = build(network, in_channels, out_channels).train()
    loss_function = DeepSupervision(
        SegmentationLoss(OutputChannels.of_labels([str(n) for n in range(out_channels)]), batch_dice=False)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():  # the optimiser makes its numbers at its first step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    held = sum(3 * parameter.numel() * 4 for parameter in model.parameters())
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        image = torch.randn(batch_size, in_channels, *patch_size)
        target = torch.randint(0, out_channels, (batch_size, 1, *patch_size))
        loss_function(model(image), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
    events = record.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return held + peak
