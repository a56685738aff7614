"""``medmamba export RUN -o BUNDLE``: write the folder beside its place, check it, and only then give it its name."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmamba.bundle.card import licence_text, metadata, readme
from medmamba.bundle.configuration import inference, training, weights_file
from medmamba.bundle.graphs import ONNX, Parity, export_graph
from medmamba.bundle.options import BundleCard, ExportOptions
from medmamba.bundle.processes import BundleError, run_python
from medmamba.bundle.runtime.cases import ENDINGS, EXPECTED_ENDING
from medmamba.bundle.runtime.network import SegmentationNetwork, hash_of_weights
from medmamba.bundle.sources import bundle_sources
from medmamba.disk.atomic import replace_folder
from medmamba.disk.own_files import RECORD, OwnFiles, real_path, refusal, refuse_replacing
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import ConfigError, InputError, need_packages
from medmamba.geometry import grid_difference
from medmamba.images import read_channels, read_label_map, stem_of
from medmamba.images.cases import ImageCase, find_cases
from medmamba.inference.prediction import Prediction
from medmamba.inference.predictor import Predictor
from medmamba.inference.trained_model import FoldEnsemble
from medmamba.models.bundle_parts import METADATA, record_parts
from medmamba.models.expectations import EXPECTATIONS
from medmamba.models.prediction_setup import PREDICTION_SETUP
from medmamba.models.trained_folds import read_model_facts
from medmamba.plans.json_record import read_stored, sealed

# `python -m monai.bundle run` and its two checks, where an import of medmamba fails as if it were not installed.
COMMANDS = """
import runpy, sys
sys.modules["medmamba"] = None
import monai.bundle
monai.bundle.verify_metadata(meta_file="configs/metadata.json", filepath=sys.argv[1])
monai.bundle.verify_net_in_out(net_id="network_def", meta_file="configs/metadata.json",
    config_file="configs/inference.json", device="cpu", n=4)  # of the spatial shapes in metadata.json
print("verify_metadata and verify_net_in_out passed", flush=True)
sys.argv = ["monai.bundle", "run", "--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json",
    "--logging_file", "configs/logging.conf", "--bundle_root", ".", "--dataset_dir", sys.argv[2],
    "--output_dir", sys.argv[3]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
assert sys.modules["medmamba"] is None
"""


LAST_DIGIT = 0.011
"""By how much expected numbers may differ that are rounded to two digits or more."""


@dataclass(frozen=True)
class ComparedCase:
    """One real case predicted by both."""

    case_id: str
    voxels: int
    foreground: int


@dataclass(frozen=True)
class BundleReport:
    """Folder of the bundle, the cases and graphs that were checked, and the output of MONAI's commands."""

    folder: Path
    cases: list[ComparedCase]
    graphs: list[Parity]
    printed: str


def export_bundle(
    model: str | Path,
    output: str | Path,
    card: BundleCard,
    check_on: str | Path,
    options: ExportOptions | None = None,
    **changes: Any,
) -> BundleReport:
    """Write a MONAI Bundle of a trained model (a run folder or one fold) and check that it gives the model's masks.

    The first ``most_cases`` of ``check_on``, an image or a folder, are predicted by MONAI in a process that cannot
    import medmamba, and by medmamba, and must agree in every voxel. Then an earlier bundle is
    replaced, if nothing in it was changed.
    The network is also written as models/model.ts, unless the bundle averages several configurations, and in
    the formats of the option ``graphs``. ``changes`` are single fields of the options by name.

    Raises BundleError when they do not; nothing is left then. Raises InputError for a folder with other
    files, unless ``overwrite``.
    """
    options = ExportOptions.of(options, check_on=check_on, **changes)
    need_packages("MONAI's bundle commands need", ("ignite", "fire", "jsonschema"), "bundle")
    if "onnx" in options.graphs:
        need_packages(*ONNX)
    find_cases(check_on)  # a wrong path is reported before a model is loaded
    refuse_replacing(Path(output), [Path(model), Path(check_on)])
    present = _files(Path(output))
    if present and not Path(output, METADATA).is_file() and not options.overwrite:
        raise refusal(present)
    OwnFiles(Path(output), options.overwrite).refuse_foreign(present)
    given: dict[str, Any] = {name: getattr(options, name) for name in ("configuration", "folds", "mirror")}
    predictor = Predictor(model, **given, device="cpu")
    cases = find_cases(check_on, predictor.plan.channel_files)[: options.most_cases]
    _refuse_what_a_bundle_cannot_read(cases)
    stages = _stages(predictor)
    single = len(predictor.model.ensembles) == 1
    if options.graphs and not single:
        raise ConfigError(f"{model}: --graph: a graph holds one configuration, not an ensemble. Choose one of them.")
    with replace_folder(output) as part:
        _write(part, predictor, stages, card, cases)
        with scratch_folder() as scratch:
            images, masks = Path(scratch, "images"), Path(scratch, "masks")
            images.mkdir()
            for path in (path for case in cases for path in case.paths):
                (images / path.name).symlink_to(real_path(path))
            printed = run_in_monai(part, images, masks)
            checked = compare_with_native(predictor, cases, masks)
        kinds = ("torchscript", *options.graphs) if single else ()
        graphs = [row for kind in kinds for row in export_graph(part, kind)]
        record_parts(part, _files(part))
        OwnFiles(part).adopt(_files(part))
    return BundleReport(Path(output), checked, graphs, printed)


def _files(folder: Path) -> list[Path]:
    """The files of a bundle, apart from what Python leaves when its scripts are run, and from the record of files."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()]
    return [path for path in files if path.parent.name != "__pycache__" and not path.name.startswith(RECORD)]


def _stages(predictor: Predictor) -> dict[str, FoldEnsemble]:
    """Every configuration of the bundle by name, the main one first, the first stages of cascades among them."""
    stages: dict[str, FoldEnsemble] = {}
    for ensemble in predictor.model.ensembles:
        stage: FoldEnsemble | None = ensemble
        while stage is not None:
            facts = [read_model_facts(folder).network for folder in stage.folders]
            where = f"Configuration {stage.name}"
            if any(other != facts[0] for other in facts):
                raise ConfigError(f"{where}: its folds have different networks. Choose folds of one with --fold.")
            if stages.setdefault(stage.name, stage).folders != stage.folders:
                raise ConfigError(f"{where} is asked for with other folds than the cascade uses. Leave out --fold.")
            stage = stage.previous
    return stages


def _trained_with(folders: Sequence[Path]) -> str:
    """The scan backends that the folds were trained with; earlier versions did not record them."""
    files = [folder / "train.json" for folder in folders]
    cure = "Restore it, or remove it."
    recipes = [read_stored(path, dict[str, Any], "recipe", cure) if path.is_file() else {} for path in files]
    return ", ".join(dict.fromkeys(recipe.get("scan_backend") or "not recorded" for recipe in recipes))


def _write(
    folder: Path, predictor: Predictor, stages: dict[str, FoldEnsemble], card: BundleCard, cases: list[ImageCase]
) -> None:
    model, ensemble = predictor.model, predictor.model.ensembles[0]
    provenance = {
        **predictor.provenance().as_dict(),
        "network": read_model_facts(ensemble.folders[0]).network["name"],
        "trained_with_scan_backend": _trained_with(ensemble.folders),
        "folds": len(ensemble.runners),
        "parameters": sum(parameter.numel() for parameter in ensemble.runners[0].network.parameters()),
        "patch_size": ensemble.configuration.patch_size,
        "stages": list(stages),
        "checked_on": [case.case_id for case in cases],
        "licence": card.licence,
    }
    facts = metadata(card, ensemble, provenance)
    hashes = {
        name: _write_stage(folder / "models", stage, weights_file(stage, ensemble)) for name, stage in stages.items()
    }
    rules = None if model.expectations is None else model.expectations.sealed_json()
    learned = {"sha256": hashlib.sha256((rules or "").encode()).hexdigest(), "weights_sha256": hashes[ensemble.name]}
    config = inference(model.ensembles, model.recipe, learned if rules else None)
    sources = bundle_sources(read_model_facts(stage.folders[0]).network["name"] for stage in stages.values())
    texts = {
        "LICENSE": licence_text(card),
        METADATA: json.dumps(facts, indent=2) + "\n",
        "configs/inference.json": json.dumps(config, indent=2) + "\n",
        "configs/logging.conf": files("medmamba.bundle").joinpath("logging.conf").read_text(encoding="utf-8"),
        "docs/README.md": readme(card, facts),
        "docs/license.txt": f"Licence of the training data: {card.data_licence or 'not stated by the author'}\n",
        **{f"scripts/{name}": text for name, text in sources.items()},
    }
    if len(stages) == 1:  # a second stage is trained on the first one's predictions for held-out cases
        texts["configs/train.json"] = json.dumps(training(ensemble), indent=2) + "\n"
    if model.fingerprint is not None:
        texts["models/fingerprint.json"] = model.fingerprint.to_json()
    if model.recipe is not None:
        texts[f"models/{PREDICTION_SETUP}"] = model.recipe.to_json()
    if rules is not None:
        texts[f"models/{EXPECTATIONS}"] = rules
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def _write_stage(models: Path, stage: FoldEnsemble, weights: str) -> str:
    """A configuration's weights as one raw state dict, and what `Predictor.from_bundle` needs of each fold.

    Returns the hash of the weights as the runtime computes it.
    """
    network = SegmentationNetwork(len(stage.runners), read_model_facts(stage.folders[0]).network)
    hashes = stage.weights_sha256()
    for number, (copy, runner, source) in enumerate(zip(network.members, stage.runners, stage.folders, strict=True)):
        copy.load_state_dict(runner.network.state_dict())
        target = models / stage.name / (source.name if source.name.startswith("fold_") else f"fold_{number}")
        target.mkdir(parents=True)
        facts = replace(
            read_model_facts(source),
            state_dict=f"../../{weights}",
            prefix=f"members.{number}.",
            weights_sha256=hashes[source.name],
        )
        (target / "model.json").write_text(json.dumps(sealed(facts.as_json()), indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(source / "plan.json", target / "plan.json")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with open(models / weights, "wb") as file:  # of a path, torch.save gives no system error for a full disk
        torch.save(state, file)
    return hash_of_weights(network)


def _refuse_what_a_bundle_cannot_read(cases: list[ImageCase]) -> None:
    """A DICOM series, and a header whose voxels lie in another file, cannot be among the images of the check."""
    endings = tuple(ending for ending in ENDINGS if ending != ".mhd")
    for path in (path for case in cases for path in case.paths):
        if not path.is_file() or not path.name.lower().endswith(endings):
            raise InputError(
                f"{path}: MONAI runs a bundle on single files ({', '.join(endings)}), and this is none. Give "
                "such images with --check-on."
            )


def run_in_monai(bundle: Path, images: Path, masks: Path) -> str:
    """Run the three commands from the bundle's root; returns what they printed."""
    failure = f"{bundle}: MONAI could not run the bundle, so it was not kept"
    schema = str(files("medmamba.bundle") / "schema.json")  # MONAI would fetch one
    result = run_python(COMMANDS, bundle, schema, str(images.resolve()), str(masks.resolve()), failure=failure)
    return result.stdout + result.stderr


def compare_with_native(predictor: Predictor, cases: Sequence[ImageCase], masks: Path) -> list[ComparedCase]:
    """Predict every case with medmamba and compare voxels and grid with the bundle's mask; raises BundleError."""
    checked = []
    for case in cases:
        native = predictor.predict(read_channels(case.paths, predictor.reading))
        names = (case.case_id, stem_of(case.paths[0]))
        found = [path for path in masks.iterdir() if stem_of(path) in names]
        if len(found) != 1:
            raise BundleError(f"{case.case_id}: the bundle wrote {len(found)} masks for this case, expected 1.")
        mask = read_label_map(found[0])
        if difference := grid_difference(native.grid, mask.grid):
            raise BundleError(f"{case.case_id}: image and the bundle's mask {difference}. The bundle was not kept.")
        expected = np.asarray(native.labels)
        different = np.argwhere(mask.array != expected)
        if len(different):
            place = tuple(different[0].tolist())
            raise BundleError(
                f"{case.case_id}: {len(different)} of {expected.size} voxels differ between the bundle and medmamba, "
                f"the first at {place}: {mask.array[place]} instead of {expected[place]}. The bundle was not kept."
            )
        if predictor.model.expectations is not None:
            _compare_expected(
                native, case.case_id, [masks / f"{name}{EXPECTED_ENDING}" for name in dict.fromkeys(names)]
            )
        checked.append(ComparedCase(case.case_id, int(expected.size), int((expected != 0).sum())))
    if not checked:
        raise InputError("No case to check the bundle on. Give --check-on IMAGES.")
    return checked


def _compare_expected(native: Prediction, case_id: str, files: Sequence[Path]) -> None:
    """Raises BundleError where the bundle expects something else of a mask than medmamba."""
    written = [read_stored(path, dict[str, Any], "file of the bundle", "") for path in files if path.is_file()]
    found, ours = (written[0].get("expected", {}) if written else {}), native.record()["expected"]
    for structure in ours.keys() | found.keys():
        for name in ("dice", "low", "high", "hd95_mm", "components"):
            here, there = (side.get(structure, {}).get(name) for side in (ours, found))
            same = here == there or (None not in (here, there) and abs(here - there) <= LAST_DIGIT)
            if not same:
                raise BundleError(
                    f"{case_id}: the bundle expects {name} {there} of {structure}, medmamba {here}. The bundle was "
                    "not kept."
                )
