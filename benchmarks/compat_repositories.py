"""Networks of public repositories, as they are, on medmamba.compat: gradients against float64, and time.

`python benchmarks/compat_repositories.py FOLDER` runs the networks whose clones lie in FOLDER, one after the other, and
prints a Markdown table; nothing is fetched. FOLDER/mamba (state-spaces/mamba) has the reference scan that ours is timed
against. Needed beside medmamba: timm, einops, fvcore, tqdm, monai, dynamic-network-architectures, batchgenerators and
acvl-utils. Where torchvision has no compiled operators (its wheels of another torch than the installed one), the two
that its import asks for are declared here, without code.

A network runs in evaluation mode on a small random image. Its loss is a random combination of all outputs. The truth is
the same network in float64 with a loop over the positions as its scan, which is written here and shares nothing with
medmamba's kernels.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import machine
from torch import Tensor, nn

import medmamba.compat
from medmamba.compat import selective_scan as answered
from medmamba.compat.usage import forget

ROUNDS = 1


@dataclass(frozen=True)
class Clone:
    """How a network of a repository is made."""

    path: str
    """Folder below FOLDER that is put on the path."""
    make: Callable[[Path], nn.Module]
    shape: tuple[int, ...]
    backward_of_reference: bool = False
    """Whether the reference's backward pass, which grows with the square of the positions, ends within minutes."""


def _import(name: str) -> Any:
    return importlib.import_module(name)


def _unet(kind: str, dims: int) -> Callable[[Path], nn.Module]:
    def make(_: Path) -> nn.Module:
        module = _import(f"nnunetv2.nets.UMamba{kind}_{dims}d")
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
        sizes: dict[str, Any] = {"input_size": (32,) * dims} if kind == "Enc" else {}
        return getattr(module, f"UMamba{kind}")(
            **sizes,
            input_channels=1,
            n_stages=4,
            features_per_stage=[16, 32, 64, 128],
            conv_op=conv,
            kernel_sizes=[[3] * dims] * 4,
            strides=[[1] * dims, *[[2] * dims] * 3],
            n_conv_per_stage=[2] * 4,
            num_classes=3,
            n_conv_per_stage_decoder=[2] * 3,
            conv_bias=True,
            norm_op=norm,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )

    return make


def _mhs_vm(folder: Path) -> nn.Module:
    """Its routes are made by its own routegen.py, for one size of image, and moved to "cuda"."""
    from medmamba.compat.cuda_as_cpu import take_cuda_as_cpu

    take_cuda_as_cpu()
    with tempfile.TemporaryDirectory() as scratch:
        routes = Path(scratch) / "routes.pth"
        torch.save(_import("routegen").calc_posarrays(64, 64, 4), routes)
        options = {"depths": [2, 2, 2, 2], "depths_decoder": [2, 2, 2, 1], "route_dict_path": str(routes)}
        model = _import("models.vmunet.vmunet").VMUNet(
            **options, para_dict={"head_num": 4, "with_proj": True, "gfu_t": 0.5}
        )
    assert isinstance(model, nn.Module)
    return model


SMALL = {"depths": [2, 2, 2, 2], "depths_decoder": [2, 2, 2, 1]}
CLONES = {
    "U-Mamba Bot, 2D": Clone("U-Mamba/umamba", _unet("Bot", 2), (1, 1, 128, 128), True),
    "U-Mamba Enc, 3D": Clone("U-Mamba/umamba", _unet("Enc", 3), (1, 1, 32, 32, 32)),
    "SegMamba": Clone("SegMamba", lambda _: _import("model_segmamba.segmamba").SegMamba(1, 3), (1, 1, 32, 32, 32)),
    "SegMamba-V2": Clone(
        "SegMamba-V2/brats23",
        lambda _: _import("models_segmamba.segmambav2").SegMamba(1, 3),
        (1, 1, 32, 32, 32),
    ),
    "VM-UNet": Clone("VM-UNet", lambda _: _import("models.vmunet.vmunet").VMUNet(**SMALL), (1, 3, 64, 64)),
    "VM-UNet V2": Clone(
        "VM-UNetV2",
        lambda _: _import("models.vmunet.vmunet_v2").VMUNetV2(**SMALL),
        (1, 3, 64, 64),
    ),
    "Swin-UMamba": Clone(
        "Swin-UMamba/swin_umamba", lambda _: _import("nnunetv2.nets.SwinUMamba").SwinUMamba(1, 3), (1, 1, 64, 64)
    ),
    "LightM-UNet": Clone(
        "LightM-UNet/lightm-unet",
        lambda _: _import("nnunetv2.nets.LightMUNet").LightMUNet(2, 16, 1, 3),
        (1, 1, 64, 64),
        True,
    ),
    "UltraLight VM-UNet": Clone(
        "UltraLight-VM-UNet",
        lambda _: _import("models.UltraLight_VM_UNet").UltraLight_VM_UNet(),
        (1, 3, 128, 128),
        True,
    ),
    "H-vmunet": Clone("H-vmunet", lambda _: _import("models.H_vmunet").H_vmunet(), (1, 3, 64, 64)),
    "Vim-Ti": Clone(
        "Vim/vim",
        lambda _: _import("models_mamba").VisionMamba(
            img_size=96, if_bimamba=False, bimamba_type="v2", final_pool_type="mean", num_classes=10
        ),
        (1, 3, 96, 96),
        True,
    ),
    "VMamba-T": Clone(
        "VMamba/classification",
        lambda _: _import("models.vmamba").vmamba_tiny_s1l8(channel_first=True),
        (1, 3, 64, 64),
    ),
    "MHS-VM": Clone("MHS-VM", _mhs_vm, (1, 3, 64, 64)),
}


def declare_torchvision_operators() -> object:
    """What keeps `import torchvision` from failing where its compiled operators do not load; None if they do."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def reference_scan(folder: Path) -> Callable[..., Any]:
    """`selective_scan_ref` of state-spaces/mamba, without the rest of its file."""
    from einops import rearrange, repeat
    from torch.nn import functional

    source = (folder / "mamba/mamba_ssm/ops/selective_scan_interface.py").read_text(encoding="utf-8")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    wanted = next(node for node in functions if node.name == "selective_scan_ref")
    names: dict[str, Any] = {"torch": torch, "F": functional, "rearrange": rearrange, "repeat": repeat}
    exec(compile(ast.Module([wanted], []), "selective_scan_ref", "exec"), names)
    return names["selective_scan_ref"]  # type: ignore[no-any-return]


Scan = Callable[..., Any]


@contextlib.contextmanager
def scanning_with(scan: Scan) -> Iterator[None]:
    """Every scan of medmamba.compat goes through a function with mamba_ssm's signature."""
    before = answered.selective_scan, answered._scan_along_routes

    def along_routes(x, delta, decays, B, C, D, delta_bias, z, delta_softplus, backend):  # type: ignore[no-untyped-def]
        x, delta, B, C, z = (value.transpose(1, 2).contiguous() for value in (x, delta, B, C, z))
        total = None
        for index, A in enumerate(decays):
            turned = [value.flip(-1) if index else value for value in (x, delta, B, C, z)]
            y = scan(turned[0], turned[1], A, turned[2], turned[3], D, turned[4], delta_bias, delta_softplus)
            y = y.flip(-1) if index else y
            total = y if total is None else total + y
        return total.transpose(1, 2)

    def plain(u, delta, A, B, C, D=None, z=None, bias=None, **options):  # type: ignore[no-untyped-def]
        softplus, last = options["delta_softplus"], options["return_last_state"]
        return scan(u, delta, A, B, C, D, z, bias, softplus, last)

    answered.selective_scan, answered._scan_along_routes = plain, along_routes  # type: ignore[assignment]
    try:
        yield
    finally:
        answered.selective_scan, answered._scan_along_routes = before  # type: ignore[assignment]


def loop(u, delta, A, B, C, D=None, z=None, bias=None, softplus=False, last=False):  # type: ignore[no-untyped-def]
    """The scan position by position; B and C (batch, N, L) or (batch, groups, N, L)."""
    B, C = (value if value.dim() == 4 else value.unsqueeze(1) for value in (B, C))
    B, C = (value.repeat_interleave(u.shape[1] // value.shape[1], 1).unbind(-1) for value in (B, C))
    step = delta if bias is None else delta + bias.unsqueeze(-1)
    step = nn.functional.softplus(step) if softplus else step
    state, outputs = 0, []
    for t, (s, x) in enumerate(zip(step.unsqueeze(-1).unbind(2), u.unsqueeze(-1).unbind(2), strict=True)):
        state = torch.exp(s * A) * state + s * x * B[t]
        outputs.append((state * C[t]).sum(-1))
    y = torch.stack(outputs, -1)
    y = y if D is None else y + u * D.unsqueeze(-1)
    y = y if z is None else y * nn.functional.silu(z)
    return (y, state) if last else y


@contextlib.contextmanager
def float_means_double() -> Iterator[None]:
    """`.float()` and `torch.float` in the code of a network keep float64."""
    as_float, float32 = Tensor.float, torch.float
    Tensor.float = Tensor.double  # type: ignore[method-assign,assignment]
    torch.float = torch.float32 = torch.float64  # type: ignore[misc]
    try:
        yield
    finally:
        Tensor.float = as_float  # type: ignore[method-assign]
        torch.float = torch.float32 = float32  # type: ignore[misc]


def gradient(model: nn.Module, image: Tensor) -> Tensor:
    """The gradient of a random combination of the outputs with respect to all parameters, as one vector."""
    model.zero_grad(set_to_none=True)
    loss_of(model(image)).backward()
    return gradient_of(model)


def gradient_of(model: nn.Module) -> Tensor:
    """The gradient that a backward pass left in all parameters, as one vector."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts])


def gradient_with_scans_in_float32(model: nn.Module, image: Tensor) -> Tensor:
    """The gradient of a network in float64 whose scans alone are medmamba's in float32."""
    single, ours = torch.float32, answered.selective_scan

    def scan(*given: Any) -> Any:
        arguments = [value.to(single) if isinstance(value, Tensor) else value for value in given[:8]]
        double = torch.float64
        torch.float = torch.float32 = single  # type: ignore[misc]
        try:
            y = ours(*arguments, delta_softplus=given[8], return_last_state=len(given) > 9 and given[9])
        finally:
            torch.float = torch.float32 = double  # type: ignore[misc]
        return tuple(value.to(double) for value in y) if isinstance(y, tuple) else y.to(double)

    model.zero_grad(set_to_none=True)
    with scanning_with(scan), float_means_double():
        loss = loss_of(model(image))
    loss.backward()
    return gradient_of(model)


def loss_of(outputs: Any) -> Tensor:
    """A random combination of every output."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    for y in outputs if isinstance(outputs, list | tuple) else [outputs]:
        weight = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        total = total + (y.double() * weight).sum()
    return total


def seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Least processor time of a few runs."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def largest_scan(model: nn.Module, image: Tensor) -> list[Any]:
    """The arguments of the scan of a forward pass that has most to do, detached."""
    kept: list[Any] = []
    most = 0

    def remember(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> Any:
        nonlocal kept, most
        if u.numel() * A.shape[1] > most:
            most = u.numel() * A.shape[1]
            kept = [value.detach() if isinstance(value, Tensor) else value for value in (u, delta, A, *rest)]
        return original(u, delta, A, *rest[:5], delta_softplus=rest[5], return_last_state=len(rest) > 6 and rest[6])

    original = answered.selective_scan
    with torch.no_grad(), scanning_with(remember):
        model(image)
    return kept


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    clone = CLONES[name]
    forget()
    for module, found in list(sys.modules.items()):  # another clone's, of the same name
        if str(folder) in f"{vars(found).get('__file__')}{vars(found).get('__path__')}":
            del sys.modules[module]
    sys.path[:] = [str(folder / clone.path), *(path for path in sys.path if str(folder) not in path)]
    importlib.invalidate_caches()
    torch.manual_seed(0)
    model = clone.make(folder).eval()
    image = torch.rand(clone.shape, generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    ours = gradient(model, image)
    both = time.process_time() - start

    with scanning_with(loop), float_means_double():
        truth = gradient(model.double(), image.double())
    of_scans = gradient_with_scans_in_float32(model, image.double())
    model.float()
    with scanning_with(loop):
        of_loop = gradient(model, image)
    theirs = reference_scan(folder)

    def error(found: Tensor) -> float:
        return ((found.double() - truth).norm() / truth.norm()).item()

    row: dict[str, Any] = {
        "name": name,
        "image": "x".join(map(str, clone.shape[1:])),
        "parameters": ours.numel(),
        "error": error(ours),
        "error of loop": error(of_loop),
        "error of scans": error(of_scans),
        "report": medmamba.compat.report(),
    }
    arguments = largest_scan(model, image)
    row["scan"] = f"D {arguments[0].shape[1]}, L {arguments[0].shape[2]}, N {arguments[2].shape[1]}"

    def both_ways(scan: Scan) -> None:
        leaves = [v.clone().requires_grad_() if isinstance(v, Tensor) else v for v in arguments[:8]]
        scan(*leaves, arguments[8]).sum().backward()

    def forward() -> None:
        with torch.no_grad():
            model(image)

    def only_forward(scan: Scan) -> None:
        with torch.no_grad():
            scan(*arguments[:9])

    def ours_scan(*given: Any) -> Any:
        return answered.selective_scan(*given[:8], delta_softplus=given[8])

    row["ours"] = {"forward": seconds(forward), "both": both}
    row["scan ours"] = {
        "forward": seconds(lambda: only_forward(ours_scan), 3),
        "both": seconds(lambda: both_ways(ours_scan), 3),
    }
    row["scan theirs"] = {"forward": seconds(lambda: only_forward(theirs), 1)}
    with scanning_with(theirs):
        row["theirs"] = {"forward": seconds(forward, 1)}
        if clone.backward_of_reference:
            row["scan theirs"]["both"] = seconds(lambda: both_ways(theirs), 1)
            start = time.process_time()
            gradient(model, image)
            row["theirs"]["both"] = time.process_time() - start
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ["network", "image", "parameters", "gradients' error", "with the loop", "scans alone", "largest scan"]
    head += ["scan: forward", "both", "network, s: forward", "both", "ratio: forward", "both"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | {row['failed']} |{' |' * (len(head) - 2)}")
            continue

        def ratio(theirs: str, ours: str, way: str, row: dict[str, Any] = row) -> str:
            return f"{row[theirs][way] / row[ours][way]:.3g}x" if way in row[theirs] else "-"

        cells = [row["name"], row["image"], f"{row['parameters']:,}"]
        cells += [f"{row[key]:.1e}" for key in ("error", "error of loop", "error of scans")] + [row["scan"]]
        cells += [ratio("scan theirs", "scan ours", way) for way in ("forward", "both")]
        cells += [f"{row['ours'][way]:.3g}" for way in ("forward", "both")]
        cells += [ratio("theirs", "ours", way) for way in ("forward", "both")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds the clones")
    parser.add_argument("--only", choices=CLONES, action="append", help="a network to measure; all without it")
    parser.add_argument("--json", type=Path, help="the rows are written to this file too")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    declared = declare_torchvision_operators()  # kept: the declaration ends with it
    medmamba.compat.install()
    rows = []
    for name in given.only or CLONES:
        try:
            rows.append(measure(name, given.folder.resolve()))
        except Exception as error:  # of somebody else's code: the others are measured
            rows.append({"name": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0]})
        print(name, rows[-1].get("failed", "done"), file=sys.stderr, flush=True)
        if given.json:
            given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print("torchvision's operators were declared" if declared else "torchvision is complete", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()
