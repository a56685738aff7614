"""Training steps of whole networks on a CPU: goals C9 and C10, and where the time of a step goes.

    python benchmarks/networks_cpu.py --peers FOLDER --json FILE.json > FILE.md

C9: VM-UNet 256 x 256 against its official code with our scan dropped in (checkout `VM-UNet`, JCruan519/VM-UNet: its
blocks with their permutations, calling `selective_scan` where they call mamba_ssm's). Both get the same weights, and no
speed is printed unless outputs and gradients agree. C10: against nnU-Net's 2D network of 33.5 M parameters (package
dynamic_network_architectures). CPU time of one thread and wall time of two; medians of rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from kernels_cpu import keep_freed_memory  # noqa: E402
from peers import _module, _stand_in  # noqa: E402
from timing import alternate, machine  # noqa: E402

from medmamba.kernels import selective_scan, selective_scan_ref  # noqa: E402
from medmamba.networks.planned.mhs_vm import MHSMixer, MultiHeadScan  # noqa: E402
from medmamba.networks.published.hrvmamba import PublishedHRVMamba  # noqa: E402
from medmamba.networks.published.vm_unet import PublishedVMUNet  # noqa: E402
from medmamba.networks.published.weights import load_published  # noqa: E402

SIZE = 256


def official_vm_unet(folder: Path) -> nn.Module:
    """The official network at its released depths, with our scan where it imports mamba_ssm's."""

    class DropPath(nn.Identity):  # the rate is 0 in the comparison
        def __init__(self, drop_prob: float = 0.0) -> None:
            super().__init__()

    layers = {"DropPath": DropPath, "to_2tuple": lambda v: (v, v), "trunc_normal_": nn.init.trunc_normal_}
    for name in ("timm", "timm.models", "mamba_ssm", "mamba_ssm.ops"):
        _stand_in(name)
    _stand_in("timm.models.layers", **layers)
    scans = {"selective_scan_fn": selective_scan, "selective_scan_ref": selective_scan_ref}
    _stand_in("mamba_ssm.ops.selective_scan_interface", **scans)
    module = _module(folder / "VM-UNet/models/vmunet/vmamba.py", "peer_vm_unet")
    return module.VSSM(in_chans=3, num_classes=1, depths=[2, 2, 2, 2], depths_decoder=[2, 2, 2, 1], drop_path_rate=0.0)


def nnunet_2d() -> nn.Module:
    """nnU-Net's 2D network: 7 stages of 32 to 512 features, deep supervision."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    widths = [32, 64, 128, 256, 512, 512, 512]
    return PlainConvUNet(
        *(3, 7, widths, nn.Conv2d, 3, [1] + [2] * 6, 2, 2, [2] * 6),
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def step_of(network: nn.Module, image: Tensor) -> Callable[[], None]:
    """One forward and backward pass; deep supervision outputs are summed."""
    network.train()

    def step() -> None:
        network.zero_grad(set_to_none=True)
        outputs = network(image)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        sum((output * output).mean() for output in outputs).backward()

    return step


def disagreement(ours: nn.Module, theirs: nn.Module, image: Tensor) -> float:
    """Largest relative difference of output and of the gradient of the image."""
    found = []
    for network in (ours.eval(), theirs.eval()):
        leaf = image.clone().requires_grad_()
        output = network(leaf)
        (gradient,) = torch.autograd.grad(output.square().mean(), leaf)
        found.append((output.detach(), gradient))
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True))


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Share of a step's own time per operator."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    times = {event.key: event.self_cpu_time_total for event in record.key_averages()}
    total = sum(times.values())
    return {name: time / total for name, time in sorted(times.items(), key=lambda item: -item[1])[:12]}


def run(peers: Path | None, rounds: int) -> dict:  # type: ignore[type-arg]
    """All figures."""
    torch.manual_seed(0)
    result: dict = {"machine": machine(), "missing": {}}
    image = torch.randn(1, 3, SIZE, SIZE)
    ours = PublishedVMUNet(drop_path=0.0)
    networks: dict[str, nn.Module] = {"VM-UNet": ours}
    networks["MHS-VM"] = PublishedVMUNet(drop_path=0.0, mixer=lambda width: MHSMixer(width, MultiHeadScan(width)))
    networks["HRVMamba tiny backbone"] = PublishedHRVMamba(3, 32, 16, se_lpu=True)
    try:
        official = official_vm_unet(peers or Path("missing"))
        report = load_published(ours, official.state_dict(), "vm_unet")
        if report.missing or report.left_over:
            raise SystemExit(f"The official weights do not fit: {report.summary()}")
        difference = disagreement(ours, official, image)
        result["official disagreement"] = difference
        if difference > 1e-4:
            raise SystemExit(f"The official network differs by {difference:.1e}: no speed is printed.")
        networks["official VM-UNet, our scan"] = official
    except (OSError, ImportError) as error:
        result["missing"]["official VM-UNet"] = str(error)
    try:
        networks["nnU-Net 2D"] = nnunet_2d()
    except ImportError as error:
        result["missing"]["nnU-Net 2D"] = str(error)
    steps = {name: step_of(network, image) for name, network in networks.items()}
    result["parameters"] = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    torch.set_num_threads(1)
    result["one thread"] = alternate(steps, rounds)
    torch.set_num_threads(2)
    result["two threads"] = alternate(steps, rounds, clock=time.perf_counter)
    torch.set_num_threads(1)
    result["profiles"] = {name: shares(step) for name, step in steps.items()}
    return result


def table(result: dict) -> str:  # type: ignore[type-arg]
    """The figures in Markdown."""
    shows = "Shows the time of one training step on a CPU; it does not show how well a network learns."
    lines = ["# Training steps of whole networks on a CPU", "", shows, ""]
    lines += [f"- {key}: {value}" for key, value in result["machine"].items()]
    lines += [f"- not timed: {name}: {why}" for name, why in result["missing"].items()]
    lines += ["", f"One image of 3 x {SIZE} x {SIZE}, forward and backward, float32; median (minimum).", ""]
    lines += ["| network | parameters | one thread, CPU time | two threads, wall time |", "|---|---|---|---|"]
    for name, count in result["parameters"].items():
        cells = (result[clock][name] for clock in ("one thread", "two threads"))
        times = " | ".join(f"{median:.2f} s ({least:.2f})" for median, least in cells)
        lines.append(f"| {name} | {count / 1e6:.1f} M | {times} |")
    lines += ["", "| goal | must | aim | one thread | two threads |", "|---|---|---|---|---|"]
    for goal, must, aim, slow, fast in (
        ("C9 official code with our scan / ours", ">= 1.6", ">= 2.2", "official VM-UNet, our scan", "VM-UNet"),
        ("C10 ours / nnU-Net's 2D network", "<= 1.0", "<= 0.7", "VM-UNet", "nnU-Net 2D"),
    ):
        if slow in result["parameters"] and fast in result["parameters"]:
            ratios = (result[clock][slow][0] / result[clock][fast][0] for clock in ("one thread", "two threads"))
            lines.append(f"| {goal} | {must} | {aim} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    if "official disagreement" in result:
        difference = result["official disagreement"]
        lines += [
            "",
            f"With the same weights, output and gradient differ from the official code's by {difference:.1e}.",
        ]
    for name, found in result["profiles"].items():
        parts = ", ".join(f"{operator.removeprefix('aten::')} {share:.0%}" for operator, share in found.items())
        lines += ["", f"{name}, own time per operator, one thread: {parts}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with the checkout VM-UNet")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    keep_freed_memory()
    result = run(arguments.peers, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
