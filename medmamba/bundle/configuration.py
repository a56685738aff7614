"""A bundle's configs/inference.json and configs/train.json: prediction and training as MONAI configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medmamba.inference.fold_ensemble import FoldEnsemble
from medmamba.models.cleaning_step import CleaningStep
from medmamba.models.model_facts import read_model_facts
from medmamba.models.network import mirroring_of
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.plans.schema import Configuration, Plan


def plan_numbers(plan: Plan, configuration: Configuration) -> dict[str, Any]:
    """What prediction needs of the plan; read by ``scripts/plan.py``."""
    return {
        "channel_names": plan.channel_names,
        "labels": plan.labels,
        "axis_order": plan.axis_order,
        "normalization": [entry.model_dump() for entry in plan.normalization],
        "spacing_mm": configuration.spacing_mm,
        "patch_size": configuration.patch_size,
        "regions": plan.regions,
        "region_order": plan.region_order,
        "ignore_label": plan.ignore_label,
        "left_right_pairs": [list(pair) for pair in plan.left_right_pairs],
    }


LOAD_WEIGHTS = {
    "_target_": "CheckpointLoader",
    "load_path": "$@bundle_root + '/models/model.pt'",
    "load_dict": {"model": "@network"},
    "map_location": "@device",
}


def _shared(ensemble: FoldEnsemble) -> dict[str, Any]:
    """What every configuration of a bundle begins with."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "plan": plan_numbers(ensemble.plan, ensemble.configuration),
        "network_def": network_def(ensemble),
        "network": "$@network_def.to(@device)",
        "initialize": [],
    }


def network_def(ensemble: FoldEnsemble) -> dict[str, Any]:
    """The network of a configuration, all its folds, with untrained weights."""
    return {
        "_target_": "scripts.network.SegmentationNetwork",
        "folds": len(ensemble.runners),
        "arguments": read_model_facts(ensemble.folders[0]).network,
    }


def inferer(ensemble: FoldEnsemble) -> dict[str, Any]:
    """The sliding window of a configuration."""
    window = ensemble.window
    lists = {name: list(getattr(window, name)) for name in ("patch_size", "mirror_axes", "channel_swap", "input_swap")}
    single = {"swap_axis": window.swap_axis, "sigmoid": window.sigmoid}
    return {"_target_": "scripts.inferer.PlanInferer", **lists, **single}


def stage(ensemble: FoldEnsemble, main: FoldEnsemble) -> dict[str, Any]:
    """A configuration beside the main network, with its weights."""
    return {
        "_target_": "scripts.stage.Stage",
        "plan": plan_numbers(ensemble.plan, ensemble.configuration),
        "network": network_def(ensemble),
        "weights": f"$@bundle_root + {'/models/' + weights_file(ensemble, main)!r}",
        "inferer": inferer(ensemble),
        "device": "@device",
        "previous": None if ensemble.previous is None else stage(ensemble.previous, main),
    }


def weights_file(ensemble: FoldEnsemble, main: FoldEnsemble) -> str:
    """Name of a configuration's weights below models/; ``model.pt`` is where clients look for the main network's."""
    return "model.pt" if ensemble.name == main.name else f"{ensemble.name}.pt"


def _loader(batch_size: int, *, shuffle: bool) -> dict[str, Any]:
    return {
        "_target_": "DataLoader",
        "dataset": "@dataset",
        "batch_size": batch_size,
        "shuffle": shuffle,
        "num_workers": 0,
    }


def _compose(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def _load(keys: str | list[str]) -> dict[str, Any]:
    return {"_target_": "LoadImaged", "keys": keys, "ensure_channel_first": True, "image_only": True}


def training(ensemble: FoldEnsemble) -> dict[str, Any]:
    """The configuration that continues the training of a single configuration, every fold on all cases.

    Light augmentation; for all of it use `medmamba train --init`.
    """
    keys, window = ["image", "label"], ensemble.window
    flat = window.flat
    size = [*([1] if flat else []), *ensemble.configuration.patch_size]
    flips = [axis for axis in mirroring_of(ensemble.plan, ensemble.configuration).axes if axis != window.swap_axis]
    return {
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/models'",
        "epochs": 10,
        "iterations": 250,
        "learning_rate": 1e-4,
        **_shared(ensemble),
        "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": "@learning_rate"},
        "loss": {"_target_": "scripts.finetune.FoldsLoss", "plan": "@plan"},
        "preprocessing": _compose(
            _load(keys),
            {"_target_": "scripts.transforms.ToPlanGridd", "keys": "image", "plan": "@plan"},
            {"_target_": "scripts.finetune.LabelToPlanGridd", "keys": "label", "plan": "@plan"},
            {"_target_": "SpatialPadd", "keys": keys, "spatial_size": size},
            {
                "_target_": "RandCropByPosNegLabeld",
                "keys": keys,
                "label_key": "label",
                "spatial_size": size,
                "num_samples": 1,
            },
            *([{"_target_": "SqueezeDimd", "keys": keys, "dim": 1}] if flat else []),
            *({"_target_": "RandFlipd", "keys": keys, "prob": 0.5, "spatial_axis": axis} for axis in flips),
            {"_target_": "RandScaleIntensityd", "keys": "image", "factors": 0.1, "prob": 0.5},
            {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.1},
            {"_target_": "ToTensord", "keys": keys, "track_meta": False},
        ),
        "dataset_data": {
            "_target_": "scripts.cases.image_list",
            "folder": "$@dataset_dir + '/imagesTr'",
            "labels": "$@dataset_dir + '/labelsTr'",
        },
        "dataset": {"_target_": "CacheDataset", "data": "@dataset_data", "transform": "@preprocessing"},
        "dataloader": _loader(ensemble.configuration.batch_size, shuffle=True),
        "handlers": [
            LOAD_WEIGHTS,
            {
                "_target_": "StatsHandler",
                "tag_name": "train_loss",
                "output_transform": "$lambda output: output['loss']",
            },
            {
                "_target_": "CheckpointSaver",
                "save_dir": "@output_dir",
                "save_dict": {"model": "@network"},
                "save_final": True,
                "final_filename": "trained.pt",
            },
        ],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@epochs",
            "epoch_length": "@iterations",
            "device": "@device",
            "train_data_loader": "@dataloader",
            "network": "@network",
            "optimizer": "@optimizer",
            "loss_function": "@loss",
            "inferer": {"_target_": "SimpleInferer"},
            "train_handlers": "@handlers",
            "decollate": False,
            "amp": "$torch.cuda.is_available()",
        },
        "run": ["$@trainer.run()"],
    }


def inference(ensembles: Sequence[FoldEnsemble], recipe: PredictionSetup | None) -> dict[str, Any]:
    """The configuration that every client runs; the first ensemble is its main network."""
    main, *others = ensembles
    first, flat = main.previous, main.configuration.spacing_mm is None
    beside = {f"other_{number}": stage(ensemble, main) for number, ensemble in enumerate(others, start=1)}
    if first is not None:
        beside["first_stage"] = stage(first, main)
    names = [f"@other_{number}" for number in range(1, 1 + len(others))]
    return {
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
        **_shared(main),
        **beside,
        "preprocessing": _compose(
            _load("image"),
            {
                "_target_": "scripts.transforms.ToPlanGridd",
                "keys": "image",
                "plan": "@plan",
                "previous": None if first is None else "@first_stage",
                "others": names,
            },
        ),
        "dataset_data": {"_target_": "scripts.cases.image_list", "folder": "@dataset_dir"},
        "dataset": {"_target_": "Dataset", "data": "@dataset_data", "transform": "@preprocessing"},
        "dataloader": _loader(1, shuffle=False),
        "inferer": inferer(main),
        "postprocessing": _compose(
            {
                "_target_": "scripts.transforms.ToNatived",
                "keys": "pred",
                "plan": "@plan",
                "orig_keys": "image",
                "cleaning": [_cleaning_step(step) for step in recipe.cleaning] if recipe else [],
                "others": names,
                "temperature": recipe.temperature if recipe else 1.0,
                "thresholds": recipe.thresholds_of(main.heads.names) if recipe and main.heads.sigmoid else None,
            },
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_ext": ".png" if flat else ".nii.gz",
                "output_postfix": "",
                "output_dtype": "uint8" if max(main.plan.labels.values()) < 256 else "int32",
                "resample": False,
                "separate_folder": False,
            },
        ),
        "handlers": [LOAD_WEIGHTS, {"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": "$torch.cuda.is_available()",
        },
        "run": ["$@evaluator.run()"],
    }


def _cleaning_step(step: CleaningStep) -> dict[str, Any]:
    """As read by ``scripts/transforms.py``; what it gained in cross-validation stays in best.json."""
    return {name: value for name, value in asdict(step).items() if name != "gain"}
