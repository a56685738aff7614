"""configs/inference.json and logging.conf: the pipeline in MONAI's words, plain ``_target_`` wherever it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmamba.inference.postprocess import Cleaning
from medmamba.inference.sliding_window import Window
from medmamba.plans.schema import Configuration, Plan

LOGGING = """[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s %(name)s %(levelname)s %(message)s
"""


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


def inference(
    plan: Plan,
    configuration: Configuration,
    arguments: Mapping[str, Any],
    *,
    folds: int,
    window: Window,
    cleaning: Sequence[Cleaning] = (),
) -> dict[str, Any]:
    """The configuration that every client runs. ``arguments`` are those of ``build_network``."""
    picture = configuration.spacing_mm is None
    saved = ".png" if picture else ".nii.gz"
    largest = max(plan.labels.values())
    mask_type = "uint8" if largest < 256 else "int32"
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "plan": plan_numbers(plan, configuration),
        "network_def": {
            "_target_": "scripts.network.SegmentationNetwork",
            "folds": folds,
            "arguments": dict(arguments),
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True, "image_only": True},
                {"_target_": "scripts.transforms.ToPlanGridd", "keys": "image", "plan": "@plan"},
            ],
        },
        "dataset_data": {"_target_": "scripts.cases.image_list", "folder": "@dataset_dir"},
        "dataset": {"_target_": "Dataset", "data": "@dataset_data", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {
            "_target_": "scripts.inferer.PlanInferer",
            "patch_size": configuration.patch_size,
            "mirror_axes": list(window.mirror_axes),
            "swap_axis": window.swap_axis,
            "channel_swap": list(window.channel_swap),
            "sigmoid": window.sigmoid,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "scripts.transforms.ToNatived",
                    "keys": "pred",
                    "plan": "@plan",
                    "orig_keys": "image",
                    "cleaning": [step.model_dump(exclude={"gain"}) for step in cleaning],
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_ext": saved,
                    "output_postfix": "",
                    "output_dtype": mask_type,
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            },
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
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
        "initialize": [],
        "run": ["$@evaluator.run()"],
    }
