"""nnU-Net's results on disk: the folders of trained configurations below a folder, and their folds."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from medmamba.errors import ConfigError, InputError
from medmamba.images.gate import read_small, shown

LARGEST_JSON = 50 * 2**20
TRAINED = re.compile(r"(?P<trainer>.+?)__(?P<plans>.+)__(?P<configuration>.+?)")
CHECKPOINTS = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}


@dataclass(frozen=True)
class TrainedFolder:
    """A folder TRAINER__PLANS__CONFIGURATION, with the checkpoint of each fold by its name (fold_0, ..., fold_all)."""

    path: Path
    trainer: str
    plans: str
    configuration: str
    checkpoints: dict[str, Path] = field(default_factory=dict)

    def missing_folds(self) -> list[str]:
        """Folds that were begun, or left out in the numbering, and have no such checkpoint."""
        begun = {path.name for path in self.path.glob("fold_*") if re.fullmatch(r"fold_\d+", path.name)}
        numbers = [int(name.removeprefix("fold_")) for name in self.checkpoints if name != "fold_all"]
        wanted = begun | {f"fold_{number}" for number in range(min(max(numbers, default=-1), 99) + 1)}
        return sorted(wanted - self.checkpoints.keys())

    def read(self, name: str) -> bytes:
        """plans.json or dataset.json. Raises InputError where it is missing."""
        return read_small(self.path / name, LARGEST_JSON)


def find_trained(source: Path, which: str | None, checkpoint: str) -> list[TrainedFolder]:
    """The trained configurations in a folder: itself, or those in the folder of a dataset, or of all results.

    ``which`` is TRAINER__PLANS where there are several. Raises InputError when nothing is found, or when several
    trainers, plans or datasets are.
    """
    if not source.is_dir():
        raise InputError(
            f"{shown(source)}: no folder of results. Give what nnU-Net wrote below nnUNet_results, or a zip of it."
        )
    found = [
        made for path in (source, *sorted(source.glob("*")), *sorted(source.glob("*/*"))) if (made := _trained(path))
    ]
    if not found:
        raise InputError(
            f"{shown(source)}: no trained model of nnU-Net 2. Give a folder TRAINER__PLANS__CONFIGURATION that holds "
            "plans.json, dataset.json and fold_0, or the folder above it."
        )
    if which is not None:
        found = [each for each in found if f"{each.trainer}__{each.plans}" == which]
        if not found:
            raise InputError(f"{shown(source)}: no model {shown(which)!r}. Give TRAINER__PLANS of a folder in it.")
    homes = sorted({shown(each.path.parent) for each in found})
    if len(homes) > 1:
        raise InputError(
            f"{shown(source)}: models of {len(homes)} datasets, as {homes[0]} and {homes[1]}. Give one of them."
        )
    kinds = sorted({f"{each.trainer}__{each.plans}" for each in found})
    if len(kinds) > 1:
        raise InputError(
            f"{shown(source)}: models of {len(kinds)} trainings: {', '.join(kinds)}. Choose one with --model."
        )
    return [_with_folds(each, checkpoint) for each in found]


def _trained(path: Path) -> TrainedFolder | None:
    if not TRAINED.fullmatch(path.name) and path.is_dir():
        path = path.resolve()  # ".", or a link
    named = TRAINED.fullmatch(path.name)
    if named is None or not path.is_dir() or not any(path.glob("fold_*")):
        return None
    return TrainedFolder(path, named["trainer"], named["plans"], named["configuration"])


def _with_folds(trained: TrainedFolder, checkpoint: str) -> TrainedFolder:
    """The folder with its checkpoints; those without the wanted one are left out unless all are.

    fold_all is left out beside numbered folds, as nnU-Net does when it predicts.
    """
    for fold in sorted(trained.path.glob("fold_*")):
        if re.fullmatch(r"fold_(\d+|all)", fold.name) and (fold / CHECKPOINTS[checkpoint]).is_file():
            trained.checkpoints[fold.name] = fold / CHECKPOINTS[checkpoint]
    if len(trained.checkpoints) > 1:
        trained.checkpoints.pop("fold_all", None)
    if not trained.checkpoints:
        other = "best" if checkpoint == "final" else "final"
        raise ConfigError(
            f"{shown(trained.path)}: no fold has a {CHECKPOINTS[checkpoint]}. Finish the training, or convert with "
            f"--checkpoint {other}."
        )
    return trained
