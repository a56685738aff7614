"""``medmamba export RUN -o BUNDLE``: write the folder beside its place, check it, and only then give it its name."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from medmamba.atomic import replace_folder
from medmamba.bundle.card import BundleCard, metadata, readme
from medmamba.bundle.check import (
    CheckedCase,
    check_metadata,
    compare_with_native,
    need_packages,
    run_in_monai,
)
from medmamba.bundle.configuration import LOGGING, inference
from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.bundle.sources import bundle_sources
from medmamba.errors import ConfigError
from medmamba.inference.cases import ImageCase, find_cases
from medmamba.inference.models import read_model_facts
from medmamba.inference.postprocess import RECIPE
from medmamba.inference.predictor import Predictor
from medmamba.preprocessing.labels import label_names


@dataclass(frozen=True)
class BundleReport:
    """Where the bundle is, what it was checked on and what MONAI's commands printed."""

    folder: Path
    cases: list[CheckedCase]
    printed: str


def export_bundle(
    model: str | Path,
    output: str | Path,
    card: BundleCard,
    check_on: str | Path,
    *,
    configuration: str | None = None,
    folds: list[int | str] | None = None,
    mirror: bool = True,
    most_cases: int = 2,
) -> BundleReport:
    """Write a complete MONAI Bundle of a trained model and prove that it gives the model's own masks.

    Args:
        model: run folder (all trained folds together) or the folder of one fold.
        output: the bundle's folder; what stood there is exchanged when the new one has passed.
        check_on: an image or a folder of real images; the first ``most_cases`` are predicted by MONAI in a process that
            cannot import medmamba, and by medmamba, and must agree in every voxel.

    Raises BundleError when they do not; nothing is left then.
    """
    need_packages()
    predictor = Predictor(
        model, configuration=configuration, folds=folds, device="cpu", mirror=mirror, confidence=False
    )
    cases = find_cases(check_on)[:most_cases]
    arguments = [read_model_facts(folder)["network"] for folder in predictor.members[0].folders]
    _refuse_what_is_not_carried(predictor, arguments)
    with replace_folder(output) as part:
        _write(part, predictor, arguments[0], card, cases)
        with TemporaryDirectory(prefix="medmamba-export-") as scratch:
            images, masks = Path(scratch, "images"), Path(scratch, "masks")
            _gather(cases, images)
            printed = run_in_monai(part, images, masks, scale=4)
            checked = compare_with_native(predictor, cases, masks)
        for leftover in part.rglob("__pycache__"):
            shutil.rmtree(leftover)
    return BundleReport(Path(output), checked, printed)


def _refuse_what_is_not_carried(predictor: Predictor, arguments: list[dict[str, Any]]) -> None:
    if len(predictor.members) != 1:
        raise ConfigError("A bundle holds one configuration. Choose one with --configuration.")
    if predictor.members[0].configuration.previous_stage is not None:
        raise ConfigError("This model is the second stage of a cascade, which a bundle cannot carry yet.")
    if any(other != arguments[0] for other in arguments):
        raise ConfigError("The folds were trained with different networks. Choose folds of one network with --fold.")


def _write(
    folder: Path, predictor: Predictor, arguments: dict[str, Any], card: BundleCard, cases: list[ImageCase]
) -> None:
    member = predictor.members[0]
    plan, configuration = predictor.plan, member.configuration
    network = SegmentationNetwork(len(member.runners), arguments)
    for copy, runner in zip(network.members, member.runners, strict=True):
        copy.load_state_dict(runner.network.state_dict())
    provenance = {
        **predictor.provenance(),
        "network": arguments["name"],
        "folds": len(member.runners),
        "parameters": sum(parameter.numel() for parameter in network.members[0].parameters()),
        "patch_size": configuration.patch_size,
        "checked_on": [case.case_id for case in cases],
        "licence": card.licence,
    }
    names = ["background", *label_names(plan)]
    facts = metadata(
        card,
        channels=plan.channel_names,
        classes=names,
        outputs=list(predictor.heads.names),
        sigmoid=predictor.heads.sigmoid,
        divisor=configuration.network.divisor,
        picture=configuration.spacing_mm is None,
        provenance=provenance,
    )
    check_metadata(facts)
    config = inference(
        plan,
        configuration,
        arguments,
        folds=len(member.runners),
        window=member.window,
        cleaning=() if predictor.recipe is None else predictor.recipe.cleaning,
    )
    texts = {
        "LICENSE": card.licence_text(),
        "configs/metadata.json": json.dumps(facts, indent=2) + "\n",
        "configs/inference.json": json.dumps(config, indent=2) + "\n",
        "configs/logging.conf": LOGGING,
        "docs/README.md": readme(card, facts),
        "docs/license.txt": f"Licence of the training data: {card.data_licence or 'not stated by the author'}\n",
        **{f"scripts/{name}": text for name, text in bundle_sources().items()},
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _write_folds(folder / "models", predictor)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    torch.save(state, folder / "models" / "model.pt")


def _write_folds(folder: Path, predictor: Predictor) -> None:
    """What `medmamba.Predictor.from_bundle` needs besides model.pt: plan, fingerprint and facts of each fold."""
    for number, source in enumerate(predictor.members[0].folders):
        target = folder / (source.name if source.name.startswith("fold_") else f"fold_{number}")
        target.mkdir(parents=True)
        facts = {**read_model_facts(source), "state_dict": "../model.pt", "prefix": f"members.{number}."}
        (target / "model.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (target / "plan.json").write_text(predictor.plan.to_json(), encoding="utf-8")
        if predictor.fingerprint is not None:
            (target / "fingerprint.json").write_text(predictor.fingerprint.to_json(), encoding="utf-8")
    if predictor.recipe is not None:
        (folder / RECIPE).write_text(predictor.recipe.to_json(), encoding="utf-8")


def _gather(cases: list[ImageCase], folder: Path) -> None:
    folder.mkdir()
    for case in cases:
        for path in case.paths:
            (folder / path.name).symlink_to(path.resolve())
