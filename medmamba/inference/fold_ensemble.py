"""The trained folds of one configuration, whose logits are averaged: from an image to logits at its own spacing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray

from medmamba.errors import ConfigError
from medmamba.geometry import Grid
from medmamba.geometry.trail import SpatialTrail
from medmamba.inference.cascade import prepare_stage
from medmamba.inference.confidence import Confidence
from medmamba.inference.memory import MemoryEstimate, estimate_memory
from medmamba.inference.runner import Execution, NetworkRunner
from medmamba.inference.sliding_window import Networks, Window, stream_logits
from medmamba.models.model_facts import read_model_facts
from medmamba.models.network import mirroring_of, previous_labels
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import is_plan, read_plan
from medmamba.models.trained_folds import has_weights, hash_of_weights, load_weights
from medmamba.networks.build import rebuild_network
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.case import PreprocessedCase

OnTile = Callable[[int, int], None]


class FoldEnsemble:
    """Networks of one configuration of a plan that answer together.

    Args:
        name: of the configuration.
        networks: one per fold, from patches to logits.
        window: how patches move; without ``patch_size``, the plan's, and with any ``mirror_axes``, those that the plan
            allows.
        folders: of the folds, in the order of the networks; none for networks that were not loaded from a disk.
        previous: the first stage of a cascade.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        networks: Networks,
        window: Window,
        *,
        folders: Sequence[Path] = (),
        previous: FoldEnsemble | None = None,
    ) -> None:
        self.name, self.plan, self.networks = name, plan, networks
        self.folders, self.previous = list(folders), previous
        self.configuration = plan.configurations[name]
        self.heads = OutputChannels.of_plan(plan)
        mirroring = mirroring_of(plan, self.configuration)
        own, extra = len(plan.channel_names), previous_labels(plan, self.configuration)
        swapped = tuple(own + self.heads.label_swap[label] - 1 for label in range(1, extra + 1))
        self.window = replace(
            window,
            patch_size=window.patch_size or tuple(self.configuration.patch_size),
            mirror_axes=tuple(mirroring.axes) if window.mirror_axes else (),
            swap_axis=mirroring.swap_axis,
            channel_swap=self.heads.channel_swap,
            input_swap=(*range(own), *swapped) if extra else (),
            sigmoid=self.heads.sigmoid,
        )
        if len(self.window.patch_size) != len(self.configuration.patch_size):
            raise ConfigError(
                f"--patch-size needs {len(self.configuration.patch_size)} numbers for {name}, not "
                f"{len(self.window.patch_size)}."
            )

    @classmethod
    def load(cls, name: str, folders: Sequence[Path], window: Window, execution: Execution) -> Self:
        """The trained folds in these folders, and all folds of the first stage of a cascade.

        Raises ConfigError when a folder is damaged, or the first stage is not beside the second.
        """
        plan = read_plan(folders[0] / "plan.json")
        previous = _first_stage(plan.configurations[name], folders[0])
        first = None if previous is None else cls.load(*previous, replace(window, patch_size=()), execution)
        networks = [_load(folder, execution) for folder in folders]
        return cls(name, plan, networks, window, folders=folders, previous=first)

    @property
    def runners(self) -> list[NetworkRunner]:
        """The networks that were loaded from a disk."""
        return [network for network in self.networks if isinstance(network, NetworkRunner)]

    def close(self) -> None:
        """Let go of the networks."""
        self.networks = []

    def weights_sha256(self) -> Mapping[str, str]:
        """SHA-256 of the weights of each fold, those of a first stage included."""
        found = {folder.name: hash_of_weights(folder) for folder in self.folders}
        if self.previous is not None:
            found |= {f"{self.previous.name}/{name}": value for name, value in self.previous.weights_sha256().items()}
        return found

    def prepare(self, name: str, array: NDArray[Any], grid: Grid) -> PreprocessedCase:
        """An image (C, i, j, k) on this configuration's grid, behind it what the first stage of a cascade found."""
        return prepare_stage(name, array, grid, self.plan, self.configuration, self.previous)

    def planes(
        self,
        image: torch.Tensor,
        *,
        scratch: Path | None = None,
        confidence: Confidence | None = None,
        on_tile: OnTile = lambda done, total: None,
    ) -> Iterator[torch.Tensor]:
        """Planes of logits (classes, J, K) of an image (C, I, J, K) on this configuration's grid, in order.

        Args:
            scratch: folder for planes that do not fit into memory.
            confidence: sees what each network says, and every plane.
        """
        window = replace(self.window, scratch=scratch)
        several = confidence if len(self.networks) > 1 else None
        planes = stream_logits(self.networks, image, window, on_tile=on_tile, confidence=several)
        return planes if confidence is None else map(confidence.see_plane, planes)

    def estimate(self, trail: SpatialTrail, budget: int | None = None) -> MemoryEstimate:
        """What predicting a case with this trail will need; ``budget`` in bytes decides what goes to disk."""
        return estimate_memory(
            trail,
            channels=len(self.plan.channel_names) + previous_labels(self.plan, self.configuration),
            classes=self.plan.out_channels,
            box=self.window.box,
            batch=self.window.batch,
            passes=len(self.networks) * 2 ** len(self.window.mirror_axes),
            budget=budget,
        )


def _load(folder: Path, execution: Execution) -> NetworkRunner:
    facts = read_model_facts(folder)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
        network = rebuild_network(facts.network)
    load_weights(folder, network)
    if not is_plan(folder / "plan.json", facts.plan_sha256):
        raise ConfigError(f"{folder}: its plan.json is not the plan it was trained with. Restore the file.")
    return NetworkRunner(network, execution)


def _first_stage(configuration: Configuration, folder: Path) -> tuple[str, list[Path]] | None:
    """The first stage of a cascade: all its trained folds in the run or bundle that ``folder`` belongs to."""
    name = configuration.previous_stage
    if name is None:
        return None
    trained = sorted(path for path in folder.parent.parent.glob(f"{name}/fold_*") if has_weights(path))
    if not trained:
        raise ConfigError(
            f"{folder}: the second stage of a cascade whose first, {name}, is not in {folder.parent.parent}. Keep the "
            "folders of both stages together."
        )
    return name, trained
