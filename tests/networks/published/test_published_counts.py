"""Every parameter count that the papers or an instantiation of their code gives, to the last one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hrvmamba_classifier import HRVMambaClassifier
from torch import nn

from medmamba.networks.blocks.scan_core import ScanCore
from medmamba.networks.planned.hrvmamba import DSS, DVSSBlock
from medmamba.networks.planned.mhs_vm import MHSMixer, MultiHeadScan
from medmamba.networks.published.hrvmamba import PublishedHRVMamba
from medmamba.networks.published.mambaout import PublishedMambaOut
from medmamba.networks.published.vim import PublishedVim
from medmamba.networks.published.vm_unet import DEPTHS, PublishedVMUNet
from tests.parity.published_lamamba import PublishedLaMamba
from tests.parity.published_sizes import HRVMAMBA as HRV
from tests.parity.published_sizes import MAMBAOUT, VIM


def vm_unet(depths: str) -> nn.Module:
    encoder, decoder = DEPTHS[depths]
    return PublishedVMUNet(depths=encoder, decoder_depths=decoder)


def mhs_vm(heads: str) -> nn.Module:
    return PublishedVMUNet(mixer=lambda width: MHSMixer(width, MultiHeadScan(width, heads=heads)))


def pointwise(size: str) -> nn.Module:
    """With the deformable convolution's two projections, as the released source reads."""
    gate = HRV[size][0]
    return HRVMambaClassifier(size, mixer=lambda c: DSS(c, pointwise=True, squeeze_excite=gate))


def backbone(size: str, output_norms: bool = False) -> nn.Module:
    se_lpu, stage1_width, width, _ = HRV[size]
    return PublishedHRVMamba(3, stage1_width, width, se_lpu=se_lpu, output_norms=output_norms)


def dvss(width: int, se_lpu: bool = False) -> nn.Module:
    return DVSSBlock(width, DSS(width, squeeze_excite=se_lpu), se_lpu=se_lpu)


COUNTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vm_unet released": (partial(vm_unet, "released"), 27_427_561),
    "vm_unet large": (partial(vm_unet, "large"), 44_273_833),
    "vm_unet Synapse": (lambda: PublishedVMUNet(out_channels=9), 27_427_761),
    "vm_unet decoder 2,2,2,2": (lambda: PublishedVMUNet(decoder_depths=(2, 2, 2, 2)), 27_532_969),
    "mhs_vm CXS": (partial(mhs_vm, "CXS"), 17_386_153),
    "mhs_vm CXSZ": (partial(mhs_vm, "CXSZ"), 17_257_129),
    "vim tiny": (PublishedVim, 7_148_008),
    "vim tiny, stride 8": (lambda: PublishedVim(tokens=729, stride=8), 7_250_344),
    "vim small": (lambda: PublishedVim(width=VIM["small"]), 25_796_584),
    "vim small, stride 8": (lambda: PublishedVim(width=384, tokens=729, stride=8), 26_001_256),
    "vim base": (lambda: PublishedVim(width=VIM["base"]), 97_598_440),
    **{f"mambaout {s}": (partial(PublishedMambaOut, 3, 1000, w, d), n) for s, (d, w, n) in MAMBAOUT.items()},
    **{f"hrvmamba {size}": (partial(HRVMambaClassifier, size), numbers[-1]) for size, numbers in HRV.items()},
    "hrvmamba nano with projections": (partial(pointwise, "nano"), 12_551_408),
    "hrvmamba tiny with projections": (partial(pointwise, "tiny"), 15_131_496),
    "hrvmamba small with projections": (partial(pointwise, "small"), 24_353_240),
    "hrvmamba base with projections": (partial(pointwise, "base"), 87_089_640),
    "hrvmamba nano backbone": (partial(backbone, "nano"), 687_336),
    "hrvmamba tiny backbone": (partial(backbone, "tiny"), 2_361_024),
    "hrvmamba small backbone": (partial(backbone, "small"), 8_178_672),
    "hrvmamba base backbone": (partial(backbone, "base"), 47_972_416),
    "hrvmamba base backbone with norms": (partial(backbone, "base", output_norms=True), 47_972_416 + 2 * 15 * 80),
    "hrvmamba pose": (lambda: PublishedHRVMamba(3, 32, 16, output_norms=False), 2_189_376),
    **{
        f"dvss {width}": (partial(dvss, width), count)
        for width, count in (
            (8, 1_944),
            (16, 4_880),
            (32, 15_896),
            (64, 57_392),
            (80, 88_696),
            (128, 215_128),
            (160, 336_112),
        )
    },
    **{
        f"dvss with SE and LPU {width}": (partial(dvss, width, se_lpu=True), count)
        for width, count in ((8, 2_168), (16, 5_456), (32, 17_560), (64, 62_768))
    },
    # LaMamba-Diff publishes none without its conditioning; these are of its code with that taken out.
    "lamamba of the golden file": (
        lambda: PublishedLaMamba(3, 6, 8, resolution=16, heads=(2, 2, 4, 4), window=4),
        313_922,
    ),
    "lamamba 96": (lambda: PublishedLaMamba(width=96, resolution=32), 39_391_784),
    "lamamba 128": (lambda: PublishedLaMamba(width=128, resolution=32), 69_715_560),
    "lamamba 192": (lambda: PublishedLaMamba(width=192, resolution=32), 156_192_488),
    "lamamba 256": (lambda: PublishedLaMamba(width=256, resolution=32), 277_108_584),
    "lamamba XL": (lambda: PublishedLaMamba(width=320, resolution=32), 432_463_848),
}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_network_has_its_number_of_parameters(name: str) -> None:
    build, count = COUNTS[name]
    with torch.device("meta"):
        assert parameters(build()) == count


@pytest.mark.parametrize(("depths", "count"), [("released", 22_037_737), ("large", 34_621_609)])
def test_counters_of_leaf_modules_miss_the_scans_own_parameters(depths: str, count: int) -> None:
    with torch.device("meta"):
        network = vm_unet(depths)
    scans = sum(parameters(module) for module in network.modules() if isinstance(module, ScanCore))
    assert parameters(network) - scans == count
