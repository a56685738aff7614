"""A run of ours as a folder of results that nnU-Net predicts with, where the network is one of nnU-Net's."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmamba.disk.atomic import replace_folder, write_bytes, write_text
from medmamba.errors import ConfigError, InputError, counted
from medmamba.models.network import mirroring_of
from medmamba.models.prediction_setup import PredictionSetup, read_prediction_setup
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import ModelFacts, load_weights, read_model_facts
from medmamba.networks.build import rebuild_network
from medmamba.nnunet.weights import their_state
from medmamba.plans.nnunet_files import IMAGE_2D_READER, nnunet_name, to_nnunet
from medmamba.plans.schema import ConvolutionParts, NetworkPlan, Plan

TRAINER, PLANS = "nnUNetTrainer", "medmambaPlans"
NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class WrittenResults:
    """The folder to name in nnUNet_results, the folds of each configuration, and what to know, a sentence each."""

    folder: Path
    folds: dict[str, list[str]]
    notes: list[str]

    def command(self) -> str:
        """What predicts with its first configuration, in nnU-Net's environment."""
        name, folds = next(iter(self.folds.items()))
        number = self.folder.name.removeprefix("Dataset").partition("_")[0]
        chosen = f"-d {number} -p {PLANS} -c {name} -f {' '.join(fold.removeprefix('fold_') for fold in folds)}"
        return f"nnUNet_results={self.folder.parent} nnUNetv2_predict {chosen} -i IMAGES -o MASKS"


def write_results(
    source: Path, output: Path, *, on_fold: Callable[[int, int], None] = lambda done, total: None
) -> WrittenResults:
    """Write the trained folds of a run below ``output``, as nnU-Net writes them below nnUNet_results.

    Raises ConfigError, with nothing written, for what nnU-Net does not have: another network, labels that are not
    numbered 0, 1, 2, ...
    """
    run = RunFolder(source)
    folds = {name: found for name in run.read_plan().configurations if (found := run.trained_folds(name))}
    if not folds:
        raise InputError(f"{source}: no trained fold. Run `medmamba train {source}` first.")
    plan = _with_trained_networks(run.read_plan(), folds)
    order = _order_of_outputs(plan, source)
    plans = json.loads(to_nnunet(plan))
    if plan.reorient and plans["image_reader_writer"] != IMAGE_2D_READER:
        plans["image_reader_writer"] = "NibabelIOWithReorient"  # canonical axes, as ours
    dataset = _description(plan, flat=plans["image_reader_writer"] == IMAGE_2D_READER)
    total, done = sum(map(len, folds.values())), 0
    name = nnunet_name(plan.dataset_name)
    with replace_folder(output) as made:
        for configuration, found in folds.items():
            home = made / name / f"{TRAINER}__{PLANS}__{configuration}"
            write_text(home / "plans.json", json.dumps(plans, indent=4) + "\n")
            write_text(home / "dataset.json", json.dumps(dataset, indent=4) + "\n")
            for fold in found:
                content = _checkpoint(plan, configuration, fold, order, plans, dataset)
                write_bytes(home / fold.name / "checkpoint_final.pth", content)
                done += 1
                on_fold(done, total)
    names = {configuration: [fold.name for fold in found] for configuration, found in folds.items()}
    return WrittenResults(output / name, names, _notes(plan, names, read_prediction_setup(source)))


def _with_trained_networks(plan: Plan, folds: dict[str, list[Path]]) -> Plan:
    """The plan with the trained configurations, and the networks that their folds have."""
    parts = {}
    for name, found in folds.items():
        facts = [read_model_facts(fold) for fold in found]
        if any(one.network != facts[0].network for one in facts):
            raise ConfigError(f"{found[0].parent}: the folds have different networks. Move all but those of one away.")
        part = plan.configurations[name]
        if part.previous_stage is not None and part.previous_stage not in folds:
            raise ConfigError(f"{found[0].parent}: the first stage, {part.previous_stage}, is not trained.")
        parts[name] = part.model_copy(update={"network": _network(facts[0], part.network)})
    first = plan.default_configuration if plan.default_configuration in parts else next(iter(parts))
    return plan.model_copy(update={"configurations": parts, "default_configuration": first})


def _network(facts: ModelFacts, planned: NetworkPlan) -> NetworkPlan:
    """The network of a trained fold, which may be another one than planned."""
    numbers = facts.network
    parts = numbers.get("parts")
    return planned.model_copy(
        update={
            "name": numbers["name"],
            "strides": numbers["strides"],
            "features_per_stage": numbers["features_per_stage"],
            "blocks_per_stage": numbers["blocks_per_stage"],
            "kernel_sizes": numbers["kernels"],
            "stem": numbers["stem"],
            "decoder_convs": _per_stage(numbers.get("decoder_convs"), len(numbers["strides"]) - 1),
            "parts": None if parts is None else ConvolutionParts(**parts),
        }
    )


def _per_stage(given: Any, stages: int) -> list[int] | None:
    return [given] * stages if isinstance(given, int) else given


def _order_of_outputs(plan: Plan, source: Path) -> list[int]:
    """Which of our output channels is nnU-Net's channel 0, 1, ...: labels by value, regions as they are."""
    if plan.regions is not None:
        return list(range(len(plan.regions)))
    values = [0, *(value for value in plan.labels.values() if value)]
    if sorted(values) != list(range(len(values))):
        raise ConfigError(
            f"{source}: labels have the values {', '.join(map(str, sorted(values)))[:80]}, nnU-Net's are 0, 1, 2, ... "
            "without a gap. Number the labels so in the dataset, and train again."
        )
    if values != sorted(values) and any(part.previous_stage for part in plan.configurations.values()):
        raise ConfigError(
            f"{source}: the labels of a cascade are not in the order of their values. Order them in the dataset."
        )
    return [int(channel) for channel in np.argsort(values)]


def _description(plan: Plan, *, flat: bool) -> dict[str, Any]:
    """dataset.json, as far as nnU-Net's predictor reads it."""
    labels: dict[str, Any] = dict(sorted(plan.labels.items(), key=lambda entry: entry[1]))
    more = {}
    if plan.regions is not None:
        values = {name: [plan.labels[part] for part in parts] for name, parts in plan.regions.items()}
        labels = {"background": 0} | {name: own[0] if len(own) == 1 else own for name, own in values.items()}
        more["regions_class_order"] = [plan.labels[name] for name in plan.region_order or ()]
    if plan.ignore_label is not None:
        labels["ignore"] = plan.ignore_label
    ending = plan.file_ending if flat or plan.file_ending in NIFTI else ".nii.gz"
    channels = {str(number): name for number, name in enumerate(plan.channel_names)}
    return {"channel_names": channels, "labels": labels, **more, "numTraining": 0, "file_ending": ending}


def _mirror_axes(plan: Plan, configuration: str) -> tuple[int, ...]:
    """The axes along which nnU-Net may mirror: without the one that exchanges left and right labels."""
    mirroring = mirroring_of(plan, plan.configurations[configuration])
    return tuple(axis for axis in mirroring.axes if axis != mirroring.swap_axis)


def _checkpoint(
    plan: Plan, configuration: str, fold: Path, order: list[int], plans: dict[str, Any], dataset: dict[str, Any]
) -> bytes:
    """checkpoint_final.pth: torch's own format, because nnU-Net reads no other; it holds tensors and plain values."""
    facts = read_model_facts(fold)
    with torch.random.fork_rng(devices=[]):
        network = rebuild_network(facts.network)
    load_weights(fold, network)
    state = {name: tensor.detach().clone() for name, tensor in their_state(network).items()}
    part = plan.configurations[configuration].network
    for level in range(len(part.strides) - 1):  # nnU-Net has a head at each level, used or not
        head = f"decoder.seg_layers.{level}."
        width = part.features_per_stage[len(part.strides) - 2 - level]
        weight = state.get(f"{head}weight", torch.zeros(plan.out_channels, width, *[1] * part.spatial_dims))
        bias = state.get(f"{head}bias", torch.zeros(plan.out_channels))
        state[f"{head}weight"], state[f"{head}bias"] = weight[order].clone(), bias[order].clone()
    number = fold.name.removeprefix("fold_")
    content = {
        "network_weights": state,
        "trainer_name": TRAINER,
        "init_args": {
            "plans": plans,
            "configuration": configuration,
            "fold": int(number) if number.isdecimal() else number,
            "dataset_json": dataset,
        },
        "inference_allowed_mirroring_axes": _mirror_axes(plan, configuration),
        "current_epoch": 0,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _notes(plan: Plan, folds: dict[str, list[str]], recipe: PredictionSetup | None) -> list[str]:
    notes = [f"{name}: {counted(len(found), 'fold')}" for name, found in folds.items()]
    if plan.conventions == "medmamba":
        notes.append("nnU-Net clips what it interpolates, which this run does not: single voxels may differ")
    if any(mirroring_of(plan, part).swap_axis is not None for part in plan.configurations.values()):
        notes.append("left and right are not mirrored: nnU-Net cannot exchange their labels")
    if recipe is not None and (recipe.cleaning or recipe.thresholds or len(recipe.configurations) > 1):
        notes.append("the choice of find-best (configurations, thresholds, post-processing) is not written")
    return notes
