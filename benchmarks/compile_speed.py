"""What `medmamba train --compile` is worth: steps of planned networks, through torch.compile and not, in turn.

    python benchmarks/compile_speed.py RUN [RUN ...]

Forward and backward of one batch of two patches, in the precision that training would choose here; wall time of all
cores. No speed is printed unless the gradients of both are about as close, in float32, to those in float64.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from timing import alternate, machine  # noqa: E402

from medmamba.compute.device import casting, choose_precision  # noqa: E402
from medmamba.models.network import network_arguments  # noqa: E402
from medmamba.models.run_folder import read_plan  # noqa: E402
from medmamba.networks.build import build_network  # noqa: E402
from medmamba.training.step import Compiled  # noqa: E402

FARTHER = 3.0
"""How many times as far from float64 as the plain network the compiled one may be; both round, in another order."""


def stop(line: str) -> None:
    raise SystemExit(line)


def compare(run: Path, rounds: int) -> str:
    """A row of the table."""
    device, plan = torch.device("cpu"), read_plan(run / "plan.json")
    chosen = plan.default
    torch.manual_seed(0)
    network = build_network(**network_arguments(plan, chosen)).train()
    compiled = Compiled(network, stop)
    image = torch.randn(2, len(plan.channel_names), *chosen.patch_size[-chosen.spatial_dims :])

    def step(forward: Callable[[torch.Tensor], Any], precision: str) -> None:
        network.zero_grad(set_to_none=True)
        with casting(precision, device):
            outputs = forward(image)
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()

    def gradients(of: nn.Module) -> torch.Tensor:
        return torch.cat([one.grad.flatten().double() for one in of.parameters() if one.grad is not None])

    exact = copy.deepcopy(network).double()
    torch.stack([output.square().mean() for output in exact(image.double())]).sum().backward()
    distances = []
    for forward in (network, compiled):
        step(forward, "fp32")
        distances.append(float((gradients(network) - gradients(exact)).norm() / gradients(exact).norm()))
    if not distances[1] <= FARTHER * distances[0]:
        stop(f"{run}: gradients are {distances[1]:.1e} from float64, plain {distances[0]:.1e}: no speed is printed.")
    precision = choose_precision("auto", device)
    started = time.perf_counter()
    step(compiled, precision)
    seconds = time.perf_counter() - started
    both = {"plain": lambda: step(network, precision), "compiled": lambda: step(compiled, precision)}
    times = {name: median for name, (median, _) in alternate(both, rounds, clock=time.perf_counter).items()}
    patch = " x ".join(str(edge) for edge in chosen.patch_size)
    return (
        f"| {plan.dataset_name} | {patch}, {precision} | {times['plain']:.3f} s | {times['compiled']:.3f} s "
        f"| {times['plain'] / times['compiled']:.2f} | {seconds:.0f} s | {distances[0]:.1e}, {distances[1]:.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    choices = parser.parse_args()
    print(*(f"- {key}: {value}" for key, value in machine().items()), sep="\n")
    print(
        "\n| dataset | patch | plain | compiled | ratio | compiling, once | gradients from float64: plain, compiled |"
    )
    print("|---|---|---|---|---|---|---|")
    for run in choices.runs:
        print(compare(run, choices.rounds), flush=True)


if __name__ == "__main__":
    main()
