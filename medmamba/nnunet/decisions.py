"""nnU-Net's decisions after training, taken over: what predicts together, post-processing, folds, and its fingerprint.

DATASET/inference_information.json                              what nnUNetv2_find_best_configuration chose
DATASET/TRAINER__PLANS__CONFIGURATION/crossval_results_folds_*/ postprocessing.pkl or .json, summary.json
DATASET/ensembles/ensemble___..._/                              the same of two configurations together
DATASET/TRAINER__PLANS__CONFIGURATION/fold_*/validation/        summary.json: the cases that a fold has not seen
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from medmamba.errors import ConfigError
from medmamba.images.gate import read_small, shown
from medmamba.models.cleaning import CleaningStep
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.nnunet.data_pickle import Named, read_data_pickle
from medmamba.nnunet.results_folder import LARGEST_JSON, TrainedFolder
from medmamba.plans.fingerprint import PIXEL_SPACING, CaseStats, ChannelIntensity, Fingerprint, seal
from medmamba.plans.folds import Fold
from medmamba.plans.json_record import as_written, strict_json
from medmamba.plans.schema import Plan

CHOICE = "inference_information.json"
STEP = "remove_all_but_largest_component_from_segmentation"
MODULE = "nnunetv2.postprocessing.remove_connected_components"
CURE = "Restore the file, or take it away to convert without it."


def setup_of(found: Sequence[TrainedFolder], plan: Plan) -> tuple[PredictionSetup | None, list[str]]:
    """What predicts by default as best.json holds it, None where nnU-Net has decided nothing; and notes.

    Raises InputError for a file that is damaged, ConfigError for post-processing that is not known here.
    """
    home = found[0].path.parent
    path, dice = home / CHOICE, dict[str, float]()
    here = {_identifier(each): each for each in found}
    if path.is_file():
        with as_written(shown(path), "choice of nnU-Net", CURE):
            stored = _read(path)
            best = stored["best_model_or_ensemble"]["selected_model_or_models"]
            chosen = [f"{one['trainer']}__{one['plans_identifier']}__{one['configuration']}" for one in best]
            folds = [str(fold) for fold in stored["folds"]]
            dice = {_short(str(key), here): float(value) for key, value in stored["all_results"].items()}
        if lacking := [name for name in chosen if name not in here]:
            names = " with ".join(shown(name)[:80] for name in chosen)
            return None, [
                f"{CHOICE} chooses {names}; {shown(lacking[0])[:80]} is not converted here, so that its choice and "
                "post-processing are not used"
            ]
        folder = f"crossval_results_folds_{'_'.join(folds)}"
        source = here[chosen[0]].path / folder
        if len(chosen) > 1:
            source = home / "ensembles" / "___".join(["ensemble", *chosen, "_".join(folds)])
    else:
        first = next(each for each in found if each.configuration == plan.default_configuration)
        results = sorted(first.path.glob("crossval_results_folds_*"), key=lambda one: (len(one.name), one.name))
        if not results:
            return None, []
        chosen, source = [_identifier(first)], results[-1]
        folds = source.name.removeprefix("crossval_results_folds_").split("_")
    steps = _steps(source)
    if steps is None and not dice:
        return None, []
    summary = _read(source / "summary.json") if (source / "summary.json").is_file() else {}
    with as_written(shown(source / "summary.json"), "summary of nnU-Net", CURE):
        cases = len(summary.get("metric_per_case", ()))
        mean = float(summary.get("foreground_mean", {}).get("Dice", math.nan))
    configurations = [here[name].configuration for name in chosen]
    dice = dice or {"+".join(configurations): mean}
    setup = PredictionSetup(
        plan_sha256=plan.hash(),
        configurations=configurations,
        folds={here[name].configuration: list(here[name].checkpoints) for name in chosen},
        dice={name: round(value, 6) for name, value in dice.items() if math.isfinite(value)},
        cases=cases,
        cleaning=_cleaning(steps or [], plan),
        mirror=True,
    )
    return setup, _notes(setup, folds, None if steps is not None else source)


def _notes(setup: PredictionSetup, folds: Sequence[str], unfound: Path | None) -> list[str]:
    notes = [f"predicts with {' and '.join(setup.configurations)}, as nnU-Net chose"]
    notes += [step.sentence() for step in setup.cleaning]
    if unfound is not None:
        notes.append(f"no post-processing: {shown(unfound.name)[:120]} holds no postprocessing.pkl")
    for name, present in setup.folds.items():
        if lacking := [fold for fold in folds if f"fold_{fold}" not in present]:
            notes.append(f"{name}: fold {', '.join(lacking)} of nnU-Net's choice is not here")
    return notes


def _identifier(trained: TrainedFolder) -> str:
    return f"{trained.trainer}__{trained.plans}__{trained.configuration}"


def _short(key: str, here: Mapping[str, TrainedFolder]) -> str:
    """Configurations joined by "+" from nnU-Net's name of a result, where all of them are converted."""
    parts = key.split("___")[1:-1] if key.startswith("ensemble___") else [key]
    known = [here[part].configuration for part in parts if part in here]
    return "+".join(known) if len(known) == len(parts) else shown(key)[:160]


def _read(path: Path) -> Any:
    """A JSON file of nnU-Net, in which NaN is a number."""
    try:
        return strict_json(read_small(path, LARGEST_JSON), float)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(path)}: not valid JSON ({shown(str(error))[:80]}). {CURE}") from None


def _steps(folder: Path) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Name and arguments of each step of post-processing; None where none was determined."""
    for name in ("postprocessing.pkl", "postprocessing.json"):
        path = folder / name
        if not path.is_file():
            continue
        with as_written(shown(path), "post-processing of nnU-Net", CURE):
            if path.suffix == ".json":
                stored = _read(path)
                functions, arguments = stored["postprocessing_fns"], stored["postprocessing_kwargs"]
            else:
                stream = BytesIO(read_small(path, LARGEST_JSON))
                functions, arguments = read_data_pickle(stream, shown(path), names={f"{MODULE}.{STEP}"})
                functions = [one.name.rpartition(".")[2] if isinstance(one, Named) else one for one in functions]
            return [(str(function), dict(given)) for function, given in zip(functions, arguments, strict=True)]
    return None


def _cleaning(steps: Sequence[tuple[str, Mapping[str, Any]]], plan: Plan) -> list[CleaningStep]:
    """Steps of ours: a label, a region or all labels as one. Raises ConfigError for another step."""
    made = []
    name_of = {value: name for name, value in plan.labels.items() if value}
    for function, arguments in steps:
        wanted = set(_values(arguments.get("labels_or_regions")))
        unknown = arguments.keys() - {"labels_or_regions", "background_label"}
        if function != STEP or arguments.get("background_label", 0) != 0 or unknown or not wanted or 0 in wanted:
            raise ConfigError(
                f"postprocessing: {shown(function)[:80]} with {shown(str(arguments))[:80]} is not known "
                "here. Take the file away to convert without it."
            )
        if names := [name_of[value] for value in sorted(wanted) if value in name_of]:
            made.append(CleaningStep(names[0], "largest_component", with_labels=tuple(names[1:])))
    return made


def _values(value: Any) -> Iterator[int]:
    """The label values in a value, a region, or a list of both."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _values(one)
    elif isinstance(value, int):
        yield value


def splits_of(found: Sequence[TrainedFolder]) -> list[Fold] | None:
    """Training and validation cases of each fold; None unless every case of the dataset was validated once."""
    with as_written(shown(found[0].path / "dataset.json"), "dataset description", CURE):
        description = json.loads(found[0].read("dataset.json"))
        total, ending = description.get("numTraining"), str(description.get("file_ending", ""))
    for each in found:
        held_out: list[set[str]] = []
        while (path := each.path / f"fold_{len(held_out)}" / "validation" / "summary.json").is_file():
            with as_written(shown(path), "summary of nnU-Net", CURE):
                files = [str(case["reference_file"]) for case in _read(path)["metric_per_case"]]
            names = [file.replace("\\", "/").rpartition("/")[2] for file in files]
            held_out.append({name.removesuffix(ending) for name in names})
        everything: set[str] = set().union(*held_out)
        if len(held_out) > 1 and len(everything) == sum(map(len, held_out)) == total:
            return [Fold(train=sorted(everything - held), val=sorted(held)) for held in held_out]
    return None


def fingerprint_of(trained: TrainedFolder, plan: Plan) -> Fingerprint | None:
    """What nnU-Net has stored about the training images, for quality control; None where it is not there.

    The axes are the file's, of unknown orientation, and sizes are those of the cropped images.
    """
    path = trained.path / "dataset_fingerprint.json"
    if not path.is_file():
        return None
    with as_written(shown(path), "fingerprint of nnU-Net", CURE):
        stored = _read(path)
        sizes = zip(stored["shapes_after_crop"], stored["spacings"], strict=True)
        cases = [_case(number, shape[::-1], spacing[::-1]) for number, (shape, spacing) in enumerate(sizes)]
        of_channels = stored["foreground_intensity_properties_per_channel"]
        fields = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
        intensities = [
            ChannelIntensity.model_validate({name: float(of_channels[str(channel)][name]) for name in fields})
            for channel in range(len(plan.channel_names))
        ]
        return seal(
            Fingerprint(
                dataset_name=plan.dataset_name,
                channel_names=plan.channel_names,
                labels=plan.labels,
                cases=cases,
                intensities=intensities,
                median_relative_size_after_cropping=min(1.0, float(stored["median_relative_size_after_cropping"])),
            )
        )


def _case(number: int, shape: Sequence[Any], spacing: Sequence[Any]) -> CaseStats:
    x, y, z = map(int, shape)
    i, j, k = map(float, spacing)
    return CaseStats(
        case_id=f"case_{number:04d}",
        shape=(x, y, z),
        spacing_mm=None if PIXEL_SPACING[0] in spacing else (i, j, k),
        orientation=None,
        shape_after_crop=(x, y, z),
        label_voxels={},
    )
