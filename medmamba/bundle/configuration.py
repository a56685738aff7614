"""A bundle's configs/inference.json and configs/train.json: prediction and training as MONAI configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from medmamba.bundle.runtime.plan import BundlePlan
from medmamba.inference.trained_model import FoldEnsemble
from medmamba.models.expectations import EXPECTATIONS
from medmamba.models.network import mirroring_of
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.models.trained_folds import read_model_facts


def _made(target: str, **arguments: Any) -> dict[str, Any]:
    """Configuration of an object that MONAI makes by calling ``target`` with these arguments."""
    return {"_target_": target, **arguments}


LOAD_WEIGHTS = _made(
    "scripts.weights.CheckpointLoader",
    load_path="$@bundle_root + '/models/model.pt'",
    load_dict={"model": "@network"},
    map_location="@device",
)


def _plan_numbers(ensemble: FoldEnsemble) -> dict[str, Any]:
    """The part of plan and configuration for prediction; read by ``runtime/plan.py``."""
    whole = {**dict(ensemble.plan.reading), **dict(ensemble.plan), **dict(ensemble.configuration)}
    numbers = {field.name: whole[field.name] for field in fields(BundlePlan)}
    return {**numbers, "normalization": [entry.model_dump() for entry in ensemble.plan.normalization]}


def _shared(ensemble: FoldEnsemble) -> dict[str, Any]:
    """What every configuration of a bundle begins with."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "plan": _plan_numbers(ensemble),
        "network_def": _network(ensemble),
        "network": "$@network_def.to(@device)",
        "initialize": [],
    }


def _network(ensemble: FoldEnsemble) -> dict[str, Any]:
    """The network of a configuration, all its folds, with untrained weights."""
    arguments = read_model_facts(ensemble.folders[0]).network
    return _made("scripts.network.SegmentationNetwork", folds=len(ensemble.runners), arguments=arguments)


def _inferer(ensemble: FoldEnsemble) -> dict[str, Any]:
    """The sliding window of a configuration."""
    names = ("patch_size", "mirror_axes", "channel_swap", "input_swap", "swap_axis", "sigmoid")
    theirs = {} if ensemble.plan.conventions == "medmamba" else {"skip_empty": False, "half_sums": True}
    return _made("scripts.inferer.PlanInferer", **{name: getattr(ensemble.window, name) for name in names}, **theirs)


def _stage(ensemble: FoldEnsemble, main: FoldEnsemble) -> dict[str, Any]:
    """A configuration beside the main network, with its weights."""
    return _made(
        "scripts.inferer.Stage",
        plan=_plan_numbers(ensemble),
        network=_network(ensemble),
        weights=f"$@bundle_root + {'/models/' + weights_file(ensemble, main)!r}",
        inferer=_inferer(ensemble),
        device="@device",
        previous=None if ensemble.previous is None else _stage(ensemble.previous, main),
    )


def weights_file(ensemble: FoldEnsemble, main: FoldEnsemble) -> str:
    """Name of a configuration's weights below models/; ``model.pt`` is where clients look for the main network's."""
    return "model.pt" if ensemble.name == main.name else f"{ensemble.name}.pt"


def _load(keys: str | list[str]) -> dict[str, Any]:
    return _made("LoadImaged", keys=keys, image_only=True)


def training(ensemble: FoldEnsemble) -> dict[str, Any]:
    """Continued training of a single configuration, every fold on all cases, with light augmentation."""
    keys, window = ["image", "label"], ensemble.window
    flat = len(window.patch_size) == 2
    size = [*([1] if flat else []), *ensemble.configuration.patch_size]
    batch_size = ensemble.configuration.batch_size
    flips = [axis for axis in mirroring_of(ensemble.plan, ensemble.configuration).axes if axis != window.swap_axis]
    preprocessing = [
        _load(keys),
        _made("scripts.transforms.ToPlanGridd", keys="image", plan="@plan"),
        _made("scripts.finetune.LabelToPlanGridd", keys="label", plan="@plan"),
        _made("SpatialPadd", keys=keys, spatial_size=size),
        _made("RandCropByPosNegLabeld", keys=keys, label_key="label", spatial_size=size, num_samples=1),
        *([_made("SqueezeDimd", keys=keys, dim=1)] if flat else []),
        *(_made("RandFlipd", keys=keys, prob=0.5, spatial_axis=axis) for axis in flips),
        _made("RandScaleIntensityd", keys="image", factors=0.1, prob=0.5),
        _made("RandGaussianNoised", keys="image", prob=0.1),
        _made("ToTensord", keys=keys, track_meta=False),
    ]
    return {
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/models'",
        "epochs": 10,
        "iterations": 250,
        "learning_rate": 1e-4,
        **_shared(ensemble),
        "optimizer": _made("torch.optim.AdamW", params="$@network.parameters()", lr="@learning_rate"),
        "loss": _made("scripts.finetune.FoldsLoss", plan="@plan"),
        "preprocessing": _made("Compose", transforms=preprocessing),
        "dataset_data": _made(
            "scripts.cases.image_list",
            folder="$@dataset_dir + '/imagesTr'",
            channel_files=ensemble.plan.channel_files,
            labels="$@dataset_dir + '/labelsTr'",
        ),
        "dataset": _made("CacheDataset", data="@dataset_data", transform="@preprocessing"),
        "dataloader": _made("DataLoader", dataset="@dataset", batch_size=batch_size, shuffle=True, num_workers=0),
        "handlers": [
            LOAD_WEIGHTS,
            _made("StatsHandler", tag_name="train_loss", output_transform="$lambda output: output['loss']"),
            _made(
                "CheckpointSaver",
                save_dir="@output_dir",
                save_dict={"model": "@network"},
                save_final=True,
                final_filename="trained.pt",
            ),
        ],
        "trainer": _made(
            "SupervisedTrainer",
            max_epochs="@epochs",
            epoch_length="@iterations",
            device="@device",
            train_data_loader="@dataloader",
            network="@network",
            optimizer="@optimizer",
            loss_function="@loss",
            inferer=_made("SimpleInferer"),
            train_handlers="@handlers",
            decollate=False,
            amp="$torch.cuda.is_available()",
        ),
        "run": ["$@trainer.run()"],
    }


def inference(
    ensembles: Sequence[FoldEnsemble], recipe: PredictionSetup | None, rules: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The configuration that every client runs; the first ensemble is its main network.

    ``rules`` are the hashes of the rules of expected quality, where there are any.
    """
    main, *others = ensembles
    flat = main.configuration.spacing_mm is None
    beside = {f"other_{number}": _stage(ensemble, main) for number, ensemble in enumerate(others, start=1)}
    references = [f"@{name}" for name in beside]
    previous = None
    if main.previous is not None:
        beside["first_stage"] = _stage(main.previous, main)
        previous = "@first_stage"
    cleaning = [step.as_json() for step in recipe.cleaning] if recipe else []
    for step in cleaning:
        del step["gain"]  # the gain in cross-validation is in best.json only
    expected, saying, file = {}, [], f"$@bundle_root + '/models/{EXPECTATIONS}'"
    if rules is not None:
        beside["expected"] = _made("scripts.expected.ExpectedMasks", path=file, plan="@plan", **rules)
        expected = {"expected": "@expected"}
        saying = [_made("scripts.expected.SaveExpectedd", keys="pred", output_dir="@output_dir")]
    restoring = _made(
        "scripts.transforms.ToNatived",
        keys="pred",
        plan="@plan",
        orig_keys="image",
        cleaning=cleaning,
        others=references,
        temperature=recipe.temperature if recipe else 1.0,
        thresholds=recipe.thresholds_of(main.heads.names) if recipe and main.heads.sigmoid else None,
        **expected,
    )
    saving = _made(
        "SaveImaged",
        keys="pred",
        output_dir="@output_dir",
        output_ext=".png" if flat else ".nii.gz",
        output_postfix="",
        output_dtype="uint8" if max(main.plan.labels.values()) < 256 else "int32",
        resample=False,
        separate_folder=False,
    )
    preparing = _made(
        "scripts.transforms.ToPlanGridd", keys="image", plan="@plan", previous=previous, others=references
    )
    return {
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
        **_shared(main),
        **beside,
        "preprocessing": _made("Compose", transforms=[_load("image"), preparing]),
        "dataset_data": _made("scripts.cases.image_list", folder="@dataset_dir", channel_files=main.plan.channel_files),
        "dataset": _made("Dataset", data="@dataset_data", transform="@preprocessing"),
        "dataloader": _made("DataLoader", dataset="@dataset", batch_size=1, shuffle=False, num_workers=0),
        "inferer": {**_inferer(main), **expected},
        "postprocessing": _made("Compose", transforms=[restoring, saving, *saying]),
        "handlers": [LOAD_WEIGHTS, _made("StatsHandler", iteration_log=False)],
        "evaluator": _made(
            "SupervisedEvaluator",
            device="@device",
            val_data_loader="@dataloader",
            network="@network",
            inferer="@inferer",
            postprocessing="@postprocessing",
            val_handlers="@handlers",
            amp="$torch.cuda.is_available()",
        ),
        "run": ["$@evaluator.run()"],
    }
