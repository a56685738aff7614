"""Pretraining without labels: the most informative slices are hidden and reconstructed from their neighbours.

The density peaks among the slices along a random axis are hidden: slices with many similar ones, far from other such
slices. The network of the plan has one output per image channel; its weights, without the last convolution, are
then the start of a training (--init).
Source: key-frame masking of KMM, Zhang et al. 2024, arXiv:2411.06481, for slices in place of frames of a motion.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from medmamba.compute.device import choose_device
from medmamba.disk.lock import FolderLock
from medmamba.disk.own_files import file_sha256
from medmamba.errors import InputError, unknown_name
from medmamba.models.checkpoint import refuse_trained
from medmamba.models.network import network_arguments
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import ModelFacts, hash_of_cases, read_model_facts
from medmamba.networks.build import build_network
from medmamba.networks.density import automatic_bandwidth, key_tokens
from medmamba.plans.decided import decided
from medmamba.plans.folds import Fold
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader, stored_cases, write_case
from medmamba.training.batches import Batch, sample_rng
from medmamba.training.config import LENGTHS, RESOLVED_AT_START, TrainConfig
from medmamba.training.epochs import FoldSetup
from medmamba.training.fold import arguments_to_resume, begin_folder, stored_config
from medmamba.training.machine import machine_line, resolved
from medmamba.training.observers import Observers
from medmamba.training.options import PRETRAINING_STEPS, PretrainOptions
from medmamba.training.progress import StepReport, TrainingResult
from medmamba.training.step import Stepper
from medmamba.training.trainer import Training

HIDDEN_FRACTION = 0.3
"""Fraction of the slices of a patch that are hidden."""
TOKEN_EDGE = 8
"""Slices are compared at this resolution, so that anatomy counts and noise does not."""
MASK_STREAM = 1_000_000
"""Sample number from which the random streams of the masks count, apart from those of the patches."""


def pretrain(
    run: str | Path,
    options: PretrainOptions | None = None,
    *,
    config: TrainConfig | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_event: Callable[[str], None] = lambda line: None,
    on_start: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> TrainingResult:
    """Pretrain the network of a planned run on its images and on a further folder of unlabelled ones.

    The model lands in RUN/pretrained/<configuration>; ``medmamba train --init`` takes that folder. ``changes``
    are fields of the options by name.
    """
    options = PretrainOptions.of(options, **changes)
    folder = RunFolder(Path(run))
    plan = folder.read_plan()
    folder.need_cases(plan)
    name = options.configuration or plan.default_configuration
    if name not in plan.configurations:
        raise unknown_name("configuration", name, list(plan.configurations))
    chosen = plan.configurations[name]
    config, target = config or TrainConfig(), folder.path / "pretrained" / name
    arguments = network_arguments(plan, chosen, network=options.network)
    device = choose_device(config.device)
    stored = stored_config(target) if options.resume else None
    if not (options.resume or options.restart):  # refused before images are read
        refuse_trained(target / "checkpoints")
    cases = list(stored_cases(folder.preprocessed(name)).values())
    if options.images is not None:
        cases += _further_cases(folder, plan, chosen, options.images, on_event)
    if not cases:
        raise InputError(f"{folder.preprocessed(name)}: no preprocessed case. Run `medmamba plan` again.")
    channels = [f"reconstruction of {channel}" for channel in plan.channel_names]
    arguments |= {"out_channels": len(channels), "deep_supervision": False}
    config = config.model_copy(update={"augment": "none"})
    if not set(LENGTHS) & set(config.given):
        config = TrainConfig.of(config, steps=PRETRAINING_STEPS)
    content = hash_of_cases(Fold(train=[f"{case.case_id} {case.source or ''}" for case in cases], val=[]))
    if options.resume:
        arguments = arguments_to_resume(target, plan, arguments)
        if read_model_facts(target).cases_sha256 not in (None, content):
            cure = "Give the same --images as then, or begin again with --restart."
            raise InputError(f"{target}: was pretrained on other images. {cure}")
    facts = ModelFacts(plan.hash(), name, arguments, "pretrained", content, heads=channels)
    with FolderLock(target):
        if stored is not None:
            kept = {field: getattr(stored, field) for field in RESOLVED_AT_START if field != "augment"}
            config = config.model_copy(update=kept)
        torch.manual_seed(config.seed)
        built = build_network(**arguments)
        config = resolved(config, built, device, cascade=False, resumed=options.resume)
        on_start(machine_line(config, built, device))
        begin_folder(folder, plan, target, facts, restart=options.restart)
        setup = FoldSetup(plan, chosen, cases, [], target, config, facts)
        return _Pretraining(built, setup, Observers([], on_event), resume=options.resume).run(on_step)


class _Pretraining(Training):
    """A training without labels: slices of every batch are hidden, and an epoch ends with a checkpoint."""

    def _stepper(self) -> Stepper:
        return Stepper(self.network, self.optimizer, _ReconstructionLoss(), None, self.config)

    def _next_batch(self) -> Batch:
        batch = super()._next_batch()
        hidden = key_slices(batch.image, batch.step, self.config.seed)
        return replace(batch, image=batch.image * (1 - hidden), label=torch.cat([batch.image, hidden], 1))

    def _end_epoch(self) -> bool:
        ended = super()._end_epoch()
        self.save()
        return ended


class _ReconstructionLoss(nn.Module):
    """Mean squared error of the hidden slices."""

    def forward(
        self, output: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``target`` (B, C + 1, ...): the image, and where it is hidden."""
        image, hidden = target[:, :-1], target[:, -1:]
        return ((output.float() - image) ** 2 * hidden).sum() / (hidden.sum() * image.shape[1])


def key_slices(image: torch.Tensor, step: int, seed: int, fraction: float = HIDDEN_FRACTION) -> torch.Tensor:
    """Density peaks among the slices of each image of a batch (B, C, ...), along a random axis; 1 in (B, 1, ...)."""
    hidden = torch.zeros((len(image), 1, *image.shape[2:]), device=image.device)
    for index, one in enumerate(image):
        rng = sample_rng(seed, step, MASK_STREAM + index)
        axes = [axis for axis in range(1, one.ndim) if one.shape[axis] >= 4] or [one.ndim - 1]
        axis = axes[int(rng.integers(len(axes)))]
        count = max(1, round(fraction * one.shape[axis]))
        tokens = _slice_tokens(one, axis)
        # a little noise: otherwise the same patch would always lose the same slices
        tokens = tokens + rng.normal(0, 0.1 * tokens.std() + 1e-6, tokens.shape)
        keys = key_tokens(tokens, count, bandwidth=automatic_bandwidth(tokens))
        hidden[index].index_fill_(axis, torch.from_numpy(keys).to(image.device), 1.0)
    return hidden


def _slice_tokens(image: torch.Tensor, axis: int) -> np.ndarray:
    """(slices, features): each slice of (C, ...) along ``axis``, averaged to a small 2D image."""
    slices = image.movedim(axis, 0)  # (n, C, ...)
    if slices.ndim == 3:
        small = F.adaptive_avg_pool1d(slices, min(TOKEN_EDGE**2, slices.shape[2]))
    else:
        small = F.adaptive_avg_pool2d(slices, (min(TOKEN_EDGE, slices.shape[2]), min(TOKEN_EDGE, slices.shape[3])))
    return small.flatten(1).cpu().numpy()


def _further_cases(
    folder: RunFolder, plan: Plan, chosen: Configuration, images: Path, on_event: Callable[[str], None]
) -> list[CaseReader]:
    """Unlabelled images on the plan's grid; stored in the run, so that a second pretraining finds them ready.

    A stored one is taken if it was made of the same files by the same decisions.
    """
    from medmamba.images import ReadOptions, files_of, read_channels
    from medmamba.images.cases import find_cases
    from medmamba.preprocessing.case import preprocess_case

    stored = folder.path / "unlabelled" / chosen.name
    ready = stored_cases(stored) if stored.is_dir() else {}
    decisions = json.dumps(decided(plan, chosen.name), sort_keys=True)
    readers, bad = [], []
    for case in find_cases(images, plan.channel_files):
        files = [file for path in case.paths for file in files_of(path) if file.is_file()]
        source = sha256("\n".join([decisions, *map(file_sha256, files)]).encode()).hexdigest()
        if case.case_id not in ready or ready[case.case_id].source != source:
            try:
                image = read_channels(case.paths, ReadOptions.of(plan.reading))
                image = image.with_channels(len(plan.channel_names), case.case_id)
                if len(image.array) != len(plan.channel_names):
                    raise InputError(
                        f"{case.case_id}: {len(image.array)} channel(s), the plan has {len(plan.channel_names)}."
                    )
            except InputError as error:
                bad.append(str(error))
                continue
            made = preprocess_case(case.case_id, image.array, image.grid, plan, chosen)
            patch = tuple(chosen.patch_size)
            chunk = (1, *patch) if chosen.spatial_dims == 2 else patch
            empty = np.zeros(made.image.shape[1:], np.int16)
            write_case(stored / case.case_id, case.case_id, made.image, empty, chunk=chunk, source=source)
        readers.append(CaseReader(stored / case.case_id))
    if bad:
        on_event(f"{len(bad)} image(s) cannot be used, the first: {bad[0]}")
    return readers
