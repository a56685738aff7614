"""Published checkpoints load under their original names, and nothing passes silently."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity.original_names import mhs_original, vim_original, vm_unet_original
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmamba.errors import ConfigError, InputError
from medmamba.networks.planned.mhs_vm import MHSMixer, MultiHeadScan
from medmamba.networks.published.hrvmamba import PublishedHRVMamba
from medmamba.networks.published.mambaout import PublishedMambaOut
from medmamba.networks.published.vim import PublishedVim
from medmamba.networks.published.vm_unet import PublishedVMUNet
from medmamba.networks.published.weights import (
    convert_weights,
    from_state_dict,
    load_published,
    our_name,
    read_state_dict,
)

SMALL = {"widths": (8, 16, 32, 64), "depths": (1, 2, 1, 1), "decoder_depths": (1, 1, 2, 1)}


def vm_unet() -> nn.Module:
    return PublishedVMUNet(3, 4, state_size=4, **SMALL)  # type: ignore[arg-type]


def mhs_vm() -> nn.Module:
    return PublishedVMUNet(mixer=lambda w: MHSMixer(w, MultiHeadScan(w, heads="CXS")), **SMALL)  # type: ignore[arg-type]


def wrapped_mhs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {f"vmunet.{mhs_original(key)}": t for key, t in state.items()}
    aliases = {k.replace(".mambaeng.", ".scanning.seq2seq_engine."): t for k, t in out.items() if ".mambaeng." in k}
    return out | aliases


def renamed(rename: Callable[[str], str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {rename(key): tensor for key, tensor in state.items()}


CASES = {
    "vm_unet": (vm_unet, lambda s: {f"vmunet.{vm_unet_original(k)}": v for k, v in s.items()}),
    "mhs_vm": (mhs_vm, wrapped_mhs),
    "vim": (lambda: PublishedVim(3, 5, 16, 2, tokens=16), renamed(vim_original)),
    "mambaout": (lambda: PublishedMambaOut(3, 5, (8, 12, 16, 24), (1, 2, 1, 1)), dict),
    "hrvmamba": (
        lambda: PublishedHRVMamba(3, 16, 8, se_lpu=True, modules=(1, 1, 1), blocks=1),
        renamed(vm_unet_original),
    ),
}


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_published_checkpoint_converts_completely(family: str, suffix: str, tmp_path: Path) -> None:
    build, rename = CASES[family]
    torch.manual_seed(3)
    module = build()
    state = {key: t.clone() for key, t in rename(module.state_dict()).items()}  # type: ignore[operator]
    assert any(our_name(key, family) != key for key in state) or family == "mambaout"
    source, target = tmp_path / f"published{suffix}", tmp_path / "ours.safetensors"
    if suffix == ".pth":
        torch.save({"model": {f"module.{key}": t for key, t in state.items()}}, source)
    else:
        save_file(state, source)
    report = convert_weights(source, target, family=family, threshold=0.4 if family == "mhs_vm" else None)
    assert not report.left_over
    assert not report.missing
    converted = load_file(target)
    for key, tensor in module.state_dict().items():
        assert torch.equal(converted[key], tensor), key
    if family == "mhs_vm":
        with safe_open(target, "pt") as file:
            assert '"threshold": 0.4' in file.metadata()["medmamba"]


def test_pretraining_fills_encoder_and_mirrored_decoder() -> None:
    net = vm_unet()
    state = {
        k: torch.full_like(t, 7.0)
        for k, t in renamed(vm_unet_original)(net.state_dict()).items()
        if k.startswith("layers.")
    }
    report = load_published(net, state | {"classifier.head.weight": torch.zeros(2, 2)}, "vmamba_v0")
    assert net.get_parameter("layers.1.blocks.1.ln_1.weight").eq(7).all()
    assert net.get_parameter("layers_up.2.blocks.0.self_attention.scan.A_logs").eq(7).all()
    assert "layers_up.2.blocks.0.ln_1.weight from layers.1.blocks.0.ln_1.weight" in report.adapted
    assert report.left_over == ("classifier.head.weight (not in this network)",)
    assert "final_conv.weight" in report.missing
    assert "left over: 1 (classifier.head.weight" in report.summary()


def test_the_timm_layout_of_mambaout_gives_the_same_network() -> None:
    net = PublishedMambaOut(3, 5, (8, 12, 16, 24), (1, 2, 1, 1))
    rules = (
        (r"^head\.fc1\.", "head.pre_logits.fc."),
        (r"^head\.norm\.", "head.pre_logits.norm."),
        (r"^head\.fc2\.", "head.fc."),
        (r"^norm\.", "head.norm."),
        (r"^stages\.(\d+)\.", r"stages.\1.blocks."),
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    )
    state = {}
    for key, tensor in net.state_dict().items():
        name = key
        for pattern, replacement in rules:
            name, changed = re.subn(pattern, replacement, name)
            if changed:
                break
        state[name] = tensor
    rebuilt = from_state_dict(state, "mambaout")
    report = load_published(rebuilt, state, "mambaout")
    assert not report.left_over
    assert not report.missing
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(rebuilt(image), net(image))


def test_a_wrong_shape_is_left_over_with_both_shapes() -> None:
    net = vm_unet()
    state = renamed(vm_unet_original)(net.state_dict())
    state["final_conv.weight"] = torch.zeros(9, 2, 1, 1)
    report = load_published(net, state, "vm_unet")
    assert report.left_over == ("final_conv.weight (is (9, 2, 1, 1), (4, 2, 1, 1) is needed)",)


def test_weights_of_which_nothing_fits_are_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"No tensor of this checkpoint fits a vm_unet network\. It has names like a\.b"
    ):
        load_published(vm_unet(), {"a.b": torch.zeros(1)}, "vm_unet")
    with pytest.raises(ConfigError, match=r"does not look like a mambaout network"):
        from_state_dict({"a.b": torch.zeros(1)}, "mambaout")
    with pytest.raises(ConfigError, match=r"Unknown weights family 'vm-unet'\. Did you mean 'vm_unet'\?"):
        load_published(vm_unet(), {}, "vm-unet")


class Payload:
    """What a hostile checkpoint would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("hostile.pth", "old.pth"):
        torch.save({"model": Payload()}, tmp_path / name, _use_new_zipfile_serialization=name != "old.pth")
        with pytest.raises(InputError, match=r"\.pth: holds more than tensors.* could run code") as refused:
            read_state_dict(tmp_path / name)
        assert "weights_only" not in str(refused.value)  # torch advises to turn it off
        assert refused.value.__suppress_context__
    assert "unpickled" not in capsys.readouterr().out
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match=r"text\.pth: (holds more than tensors|damaged)") as refused:
        read_state_dict(tmp_path / "text.pth")
    assert "weights_only" not in str(refused.value)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"list\.pth: holds a list, not tensors by name"):
        read_state_dict(tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match=r"cut\.safetensors: damaged, or no file of weights \(SafetensorError\)"):
        read_state_dict(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"none\.pth: no such file of weights"):
        read_state_dict(tmp_path / "none.pth")
