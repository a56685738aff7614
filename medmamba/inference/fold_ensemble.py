"""One configuration of a model with its trained folds: from an image to planes of logits at its own spacing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from medmamba.errors import ConfigError
from medmamba.geometry import Grid
from medmamba.geometry.trail import SpatialTrail
from medmamba.inference.cascade import prepare_stage
from medmamba.inference.confidence import Confidence
from medmamba.inference.memory import MemoryEstimate, estimate_memory
from medmamba.inference.restore import Block, last_step, native_blocks
from medmamba.inference.runner import NetworkRunner
from medmamba.inference.sliding_window import Window, stream_logits
from medmamba.models.network import mirroring_of, previous_labels
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import is_plan, read_plan
from medmamba.models.trained_folds import hash_of_weights, is_trained, load_weights, read_model_facts
from medmamba.networks.build import rebuild_network
from medmamba.plans.schema import Configuration
from medmamba.preprocessing.case import PreprocessedCase, trail_of_shape

OnTile = Callable[[int, int], None]


class Member:
    """The folds of one configuration; their logits are averaged."""

    def __init__(
        self,
        name: str,
        folders: list[Path],
        device: torch.device,
        window: Window,
        lock: threading.Lock,
        precision: str = "fp32",
    ) -> None:
        self.name, self.folders = name, folders
        self.plan = read_plan(folders[0] / "plan.json")
        self.configuration = self.plan.configurations[name]
        self.heads = OutputChannels.of_plan(self.plan)
        mirroring = mirroring_of(self.plan, self.configuration)
        self.previous = _first_stage(self.configuration, folders[0], device, window, lock, precision)
        own, extra = len(self.plan.channel_names), previous_labels(self.plan, self.configuration)
        sides = tuple(own + self.heads.label_swap[label] - 1 for label in range(1, extra + 1))
        self.window = replace(
            window,
            patch_size=window.patch_size or tuple(self.configuration.patch_size),
            mirror_axes=tuple(mirroring.axes) if window.mirror_axes else (),
            swap_axis=mirroring.swap_axis,
            channel_swap=self.heads.channel_swap,
            input_swap=(*range(own), *sides) if extra else (),
            sigmoid=self.heads.sigmoid,
        )
        if len(self.window.patch_size) != len(self.configuration.patch_size):
            raise ConfigError(
                f"--patch-size needs {len(self.configuration.patch_size)} numbers for {name}, not "
                f"{len(self.window.patch_size)}."
            )
        self.runners = [self._load(folder, device, lock, precision) for folder in folders]

    @property
    def classes(self) -> int:
        """Channels of the logits."""
        return self.plan.out_channels

    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of each fold."""
        found = {folder.name: hash_of_weights(folder) for folder in self.folders}
        if self.previous is not None:
            found |= {f"{self.previous.name}/{name}": value for name, value in self.previous.weights().items()}
        return found

    def prepare(self, name: str, array: NDArray[Any], grid: Grid) -> PreprocessedCase:
        """An image (C, i, j, k) on this configuration's grid, behind it what the first stage of a cascade found."""
        return prepare_stage(name, array, grid, self.plan, self.configuration, self.previous)

    def planes(self, image: torch.Tensor) -> Iterator[torch.Tensor]:
        """Planes of logits (classes, J, K) of an image (C, I, J, K) on this configuration's grid, in order."""
        return stream_logits(self.runners, image, self.window)

    def estimate(self, case: PreprocessedCase, budget: int | None = None) -> MemoryEstimate:
        """What predicting the case will need; ``budget`` in bytes decides what goes to disk."""
        return self._estimate(case.trail, budget)

    def estimate_for(
        self, shape: Sequence[int], spacing_mm: Sequence[float] | None = None, budget: int | None = None
    ) -> MemoryEstimate:
        """What predicting an image (i, j, k) without any empty border will need."""
        return self._estimate(trail_of_shape(shape, spacing_mm, self.plan, self.configuration), budget)

    def _estimate(self, trail: SpatialTrail, budget: int | None) -> MemoryEstimate:
        return estimate_memory(
            trail,
            len(self.plan.channel_names) + previous_labels(self.plan, self.configuration),
            self.classes,
            self.window.box,
            batch=self.window.batch,
            passes=len(self.runners) * 2 ** len(self.window.mirror_axes),
            budget=budget,
        )

    def blocks(
        self, case: PreprocessedCase, scratch: Path | None, confidence: Confidence | None, on_tile: OnTile
    ) -> Iterator[Block]:
        """Blocks of logits at the image's own spacing inside its crop, in order."""
        window = replace(self.window, scratch=scratch)
        planes = stream_logits(
            self.runners,
            torch.from_numpy(case.image),
            window,
            on_tile=on_tile,
            judge=confidence if len(self.runners) > 1 else None,
        )
        return native_blocks(planes if confidence is None else map(confidence.see_plane, planes), last_step(case.trail))

    def _load(self, folder: Path, device: torch.device, lock: threading.Lock, precision: str) -> NetworkRunner:
        facts = read_model_facts(folder)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
            network = rebuild_network(facts["network"])
        load_weights(folder, network)
        if not is_plan(folder / "plan.json", facts["plan_sha256"]):
            raise ConfigError(f"{folder}: its plan.json is not the plan it was trained with. Restore the file.")
        return NetworkRunner(network, device, lock, precision)


def _first_stage(
    configuration: Configuration,
    folder: Path,
    device: torch.device,
    window: Window,
    lock: threading.Lock,
    precision: str,
) -> Member | None:
    """The first stage of a cascade: all its trained folds in the run or bundle that ``folder`` belongs to."""
    name = configuration.previous_stage
    if name is None:
        return None
    trained = sorted(path for path in folder.parent.parent.glob(f"{name}/fold_*") if is_trained(path))
    if not trained:
        raise ConfigError(
            f"{folder}: the second stage of a cascade whose first, {name}, is not in {folder.parent.parent}. Keep the "
            "folders of both stages together."
        )
    return Member(name, trained, device, replace(window, patch_size=()), lock, precision)
