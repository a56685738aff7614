"""Golden files of other sizes and options than the stored ones are rebuilt too, and what is not known is refused.

The files are made here, from our own presets under the originals' names: whether the presets compute the published
functions is what the stored files say (test_golden_files.py); here it is whether a description finds the preset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medmamba.networks.blocks.attention import WindowAttention
from medmamba.networks.blocks.deformable import DeformableConv
from medmamba.networks.blocks.vss import SS2D, VSSBlock
from medmamba.networks.planned import mhs_vm
from medmamba.networks.planned.hrvmamba import DSS, DVSSBlock
from medmamba.networks.planned.lamamba import LaMambaBlock
from medmamba.networks.planned.mambaout import GatedCNNBlock
from medmamba.networks.planned.mhs_vm import MHSMixer, MultiHeadScan
from medmamba.networks.planned.vim import BidirectionalMamba
from medmamba.networks.published.hrvmamba import PublishedHRVMamba
from medmamba.networks.published.mambaout import PublishedMambaOut
from medmamba.networks.published.vim import PublishedVim
from medmamba.networks.published.vm_unet import PublishedVMUNet
from parity.compare import compare, main, summary
from parity.original_names import mamba2_original, mhs_original, vim_original, vm_unet_original

from .published_lamamba import PublishedLaMamba
from .published_mamba2 import Mamba2

STORED = Path(__file__).parents[2] / "tests" / "data" / "parity"
SMALL = {"widths": (8, 16, 32, 64), "depths": (1, 2, 1, 1), "decoder_depths": (1, 1, 2, 1)}
FLOAT32 = {"official_float32_rel_err_output": 4e-6, "official_float32_rel_err_grad_input": 1e-3}


class Probabilities(nn.Sequential):
    """The originals' wrapper of one class; its parameters keep the names of the network inside."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self[0].state_dict(*args, **options)

    def forward(self, image: Tensor) -> Tensor:
        return self[0](image).sigmoid()


class ChannelsFirst(nn.Module):
    """A channels-last block as the original calls it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.block.state_dict(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.movedim(1, -1)).movedim(-1, 1)


def unpadded(net: PublishedVMUNet) -> PublishedVMUNet:
    net.total_stride = (1, 1)
    return net


def scan(width: int) -> nn.Module:
    return SS2D(width, expand=1, state_size=2, kernel=5, dt_rank=2, route="cross")


def mhs(width: int, **options: Any) -> nn.Module:
    mixer = {"kernel": options.pop("kernel", (3, 3)), "gated": options.pop("gated", True)}
    return MHSMixer(width, MultiHeadScan(width, **options), **mixer)


def hrv_mixer(width: int) -> nn.Module:
    return DSS(width, expand=1.5, state_size=2, dt_rank=2, squeeze_excite=True)


CTOR = {"forward_type": "v2", "continuous_scan": False, "ssm_drop_rate": 0.1}
DVSS = {"forward_type": "v05_noz", "ssm_act_layer": "silu", "ssm_dt_rank": 2, "mlp_ratio": 3.0, "mlp_drop_rate": 0.0}
Case = tuple[str, dict[str, Any], Callable[[], nn.Module], Callable[[str], str], tuple[int, ...]]

# Model, its description, the preset it must find, the originals' names, the input's shape.
CASES: dict[str, Case] = {
    "mixer": (
        "SS2D",
        {"d_model": 20, "d_state": 3, "expand": 1.5, "d_conv": 5, "dt_rank": 4, "bias": True, "conv_bias": False},
        lambda: SS2D(20, expand=1.5, state_size=3, kernel=5, dt_rank=4, bias=True, conv_bias=False),
        vm_unet_original,
        (1, 4, 7, 20),
    ),
    "block": (
        "VSSBlock",
        {"hidden_dim": 16, "d_state": 2, "drop_path": 0.2, "attn_drop_rate": 0.0},
        lambda: VSSBlock(16, SS2D(16, state_size=2), eps=1e-6),
        vm_unet_original,
        (2, 9, 3, 16),
    ),
    "vm_unet": (
        "VMUNet",
        {"num_classes": 3, "d_state": 3, "drop_path_rate": 0.2},
        lambda: PublishedVMUNet(3, 3, state_size=3, **SMALL),  # type: ignore[arg-type]
        vm_unet_original,
        (2, 1, 32, 64),
    ),
    "vm_unet that cuts": (
        "VMUNet",
        {"num_classes": 2},
        lambda: unpadded(PublishedVMUNet(3, 2, **SMALL)),  # type: ignore[arg-type]
        vm_unet_original,
        (1, 3, 70, 33),
    ),
    "mhs_vm": (
        "VMUNet with MHS module",
        {"num_classes": 1, "head_num": 4, "gfu_t": 0.4, "with_proj": False, "d_state": 5},
        lambda: Probabilities(
            PublishedVMUNet(
                mixer=lambda w: mhs(w, heads="CXSZ", threshold=0.4, projection=False, state_size=5),
                **SMALL,  # type: ignore[arg-type]
            )
        ),
        mhs_original,
        (1, 3, 64, 32),
    ),
    "gate": (
        "VSSGate",
        {"d_model": 14, "head_num": 3, "gfu_t": 0.0, "d_conv": 5, "d_state": 3, "dt_rank": 2},
        lambda: mhs(14, heads="CXS", threshold=0.0, kernel=(5, 5), state_size=3, dt_rank=2),
        mhs_original,
        (2, 5, 6, 14),
    ),
    "no gate": (
        "VSSUnGated",
        {"d_model": 16, "head_num": 4, "gfu_t": 0.8},
        lambda: mhs(16, heads="CXSZ", threshold=0.8, gated=False),
        mhs_original,
        (2, 5, 6, 16),
    ),
    "both directions": (
        "Mamba mixer (Vim fork)",
        {"d_model": 12, "bimamba_type": "v2", "if_divide_out": True, "dt_rank": 3, "expand": 1, "conv_bias": False},
        lambda: BidirectionalMamba(12, expand=1, dt_rank=3, conv_bias=False),
        vim_original,
        (2, 13, 12),
    ),
    "shared directions": (
        "Mamba mixer (Vim fork)",
        {"d_model": 12, "bimamba_type": "v1", "d_state": 5, "init_layer_scale": 0.1, "bias": True},
        lambda: BidirectionalMamba(12, directions="v1", state_size=5, layer_scale=0.1, bias=True, divide=False),
        vim_original,
        (1, 7, 12),
    ),
    "class token first": (
        "VisionMamba",
        {"if_cls_token": True, "patch_size": 8, "final_pool_type": "mean", "init_layer_scale": 0.5},
        lambda: PublishedVim(
            1, 4, 16, 2, tokens=24, patch=8, stride=8, class_token="head", layer_scale=0.5, divide=False
        ),
        vim_original,
        (2, 1, 32, 48),
    ),
    "class tokens at both ends": (
        "VisionMamba",
        {"if_cls_token": True, "use_double_cls_token": True, "stride": 4, "if_divide_out": True, "rms_norm": False},
        lambda: PublishedVim(3, 4, 16, 1, tokens=21, patch=8, stride=4, class_token="both", rms_norm=False),
        vim_original,
        (1, 3, 32, 16),
    ),
    "last token": (
        "VisionMamba",
        {"if_cls_token": False, "final_pool_type": "none", "bimamba_type": "none", "d_state": 4, "if_divide_out": True},
        lambda: PublishedVim(3, 4, 16, 1, tokens=4, class_token="none", pool="last", directions="none", state_size=4),
        vim_original,
        (2, 3, 32, 32),
    ),
    "gated convolution": (
        "GatedCNNBlock",
        {"dim": 20},
        lambda: GatedCNNBlock(20, expansion=1.7, kernel=(3, 3), conv_ratio=0.3),
        str,
        (1, 6, 5, 20),
    ),
    "mambaout": (
        "MambaOut",
        {"num_classes": 2, "head_dropout": 0.3},
        lambda: PublishedMambaOut(2, 2, (8, 12, 20), (1, 1, 2), kernel=(5, 5), expansion=2.0, conv_ratio=0.5),
        str,
        (1, 2, 33, 50),
    ),
    "lamamba": (
        "LaMamba block",
        {"ctor": {**CTOR, "window_size": 3, "shift_size": 1, "input_resolution": 6, "ssm_dt_rank": 2}},
        lambda: LaMambaBlock(12, scan(12), WindowAttention(12, 3, (3, 3), shifted=True), mlp_ratio=2),
        vm_unet_original,
        (2, 6, 6, 12),
    ),
    "lamamba_unet": (
        "LaMamba U-Net",
        {"ctor": {**CTOR, "num_heads": [1, 2, 4, 2], "window_size": 4, "sd_unet_decoder_design": False}},
        lambda: PublishedLaMamba(
            2,
            4,
            8,
            resolution=8,
            patch=2,
            depths=(1, 2, 1, 1),
            middle_depth=1,
            extra_decoder_blocks=0,
            heads=(1, 2, 4, 2),
            window=4,
            mlp_ratio=3,
            scan=scan,
        ),
        vm_unet_original,
        (1, 2, 16, 16),
    ),
    "mamba2": (
        "Mamba2Simple",
        {"ctor": {"d_model": 12, "d_state": 6, "ngroups": 3, "headdim": 4, "chunk_size": 8, "bias": True}},
        lambda: Mamba2(12, state_size=6, groups=3, head_width=4, bias=True, conv_bias=False, block=8),
        mamba2_original,
        (2, 19, 12),
    ),
    "deformable": (
        "DCNv4",
        {"ctor": {"channels": 12, "group": 3, "offset_scale": 0.5, "pad": 2, "dilation": 2, "remove_center": True}},
        lambda: DeformableConv(
            12, 3, pointwise=True, output_bias=False, offset_scale=0.5, padding=2, dilation=2, remove_center=True
        ),
        str,
        (2, 7, 5, 12),
    ),
    "dvss": (
        "HRVmambaBlock(se_lpu)",
        {"ctor": {"hidden_dim": 24, **DVSS}, "dcn_without_pointwise": True},
        lambda: ChannelsFirst(DVSSBlock(24, hrv_mixer(24), mlp_ratio=3, se_lpu=True)),
        vm_unet_original,
        (1, 24, 6, 9),
    ),
    "hrvmamba": (
        "HRVmamba multi-resolution backbone",
        {"in_channels": 1, "extra": {"stage2": {"block": "HRVmambaBlock", "num_blocks": [1, 1], **DVSS}}},
        lambda: PublishedHRVMamba(
            1,
            4,
            (8, 16, 24, 32),
            bottlenecks=1,
            modules=(1, 2, 1),
            blocks=(1, 2, 1),
            mlp_ratio=3,
            mixer=hrv_mixer,
        ),
        vm_unet_original,
        (1, 1, 32, 64),
    ),
}


@contextmanager
def distances_to_gates() -> Iterator[list[float]]:
    """How near values come to the thresholds of multi-head scans, at which float32 and float64 may take two sides."""
    fuse, distances = mhs_vm.fuse_routes, []

    def watched(y: Tensor, threshold: float, dim: int) -> Tensor:
        spread = fuse(y, 0.0, dim) / y.sum(dim)
        distances.append((spread - threshold).abs().min().item())
        return fuse(y, threshold, dim)

    with patch.object(mhs_vm, "fuse_routes", watched):
        yield distances


def write_golden(case: Case, path: Path) -> Path:
    """A golden file as the originals' scripts write them: a float64 run of float32 numbers, stored in float32."""
    model, description, build, rename, shape = case
    generator = torch.Generator().manual_seed(0)
    nearest = 0.0
    while nearest < 1e-4:
        module = build().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        stored = {f"param/{rename(name)}": t.clone() for name, t in module.state_dict().items()}
        stored["input"] = torch.randn(shape, generator=generator)
        image = stored["input"].double().requires_grad_()
        with distances_to_gates() as distances:
            result = module.double()(image)
        nearest = min(distances, default=1.0)
    if isinstance(result, Tensor):
        stored["output"] = result.detach().float()
        stored["cotangent"] = torch.randn(result.shape, generator=generator)
        (result * stored["cotangent"]).sum().backward()
        assert image.grad is not None
        stored["grad/input"] = image.grad.float()
    else:
        stored |= {f"output{i}": part.detach().float() for i, part in enumerate(result)}
    layout = "info" if "ctor" in description or "extra" in description else "config"
    facts = {"model": model, **description, **(FLOAT32 if layout == "config" else {})}
    tensors = {key: t.contiguous() for key, t in stored.items() if not key.endswith("num_batches_tracked")}
    save_file(tensors, path, metadata={layout: json.dumps(facts)})
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_description_finds_its_preset(name: str, tmp_path: Path) -> None:
    checks = compare(write_golden(CASES[name], tmp_path / "golden.safetensors"))
    assert all(check.passed for check in checks), summary(checks)
    assert any(check.kind == "float64 output" for check in checks)


@pytest.mark.parametrize(
    ("stored", "changes", "message"),
    [
        ("vmunet_ss2d", {"zigzag": True}, "'SS2D' has the option 'zigzag' (True), which is not known here"),
        ("mhs_block_h3", {"gfu_t": None}, "VSSGate cannot be rebuilt: KeyError 'gfu_t'"),
        ("lamamba_block_shift", {"ctor": {"forward_type": "v3"}}, "'forward_type' of golden model 'LaMamba block"),
        ("lamamba_block_shift", {"ctor": {"shift_size": 1}}, "is 1; known here are 0 and 2"),
        ("hrvmamba_dvss_block", {"ctor": {"gmlp": True}}, "'gmlp' of golden model 'HRVmambaBlock' is True; known here"),
    ],
)
def test_what_is_not_known_is_named(
    stored: str, changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with safe_open(STORED / f"{stored}.safetensors", "pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layout = "config" if "config" in meta else "info"
    facts = json.loads(meta[layout])
    for key, value in changes.items():
        facts[key] = {**facts[key], **value} if isinstance(value, dict) else value
    meta[layout] = json.dumps({key: value for key, value in facts.items() if value is not None})
    save_file(tensors, tmp_path / "x.safetensors", metadata=meta)
    assert main([str(tmp_path / "x.safetensors")]) == 2
    assert message in capsys.readouterr().out


def test_a_file_without_its_output_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with safe_open(STORED / "vmunet_ss2d.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name != "output"}  # noqa: SIM118
        save_file(kept, tmp_path / "x.safetensors", metadata=file.metadata())
    assert main([str(tmp_path / "x.safetensors")]) == 2
    assert "x.safetensors: the golden file has no 'output'" in capsys.readouterr().out
