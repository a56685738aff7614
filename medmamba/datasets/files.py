"""The files in a dataset's folders: label maps of its test cases, and what no case uses, counted and named."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.images import ending_of, stem_of, written_files
from medmamba.images.gate import brief

FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesVal", "labelsVal")
"""Folders of the layouts, which are looked through even where no case lies in them."""


def with_files(spec: DatasetSpec) -> DatasetSpec:
    """The dataset with its files as they are named on disk, the label maps of its test cases in labelsTs, and warnings
    for files that no case uses and for a label map of several cases."""
    spelled = cache(_spelled)

    def on_disk(path: Path) -> Path:
        return path if os.path.lexists(path) else spelled(path.parent).get(_accents(path.name), path)

    cases, test = (
        tuple(
            replace(
                case, images=tuple(map(on_disk, case.images)), label=None if case.label is None else on_disk(case.label)
            )
            for case in several
        )
        for several in (spec.cases, map(_with_label, spec.test))
    )
    files = [path for case in (*cases, *test) for path in (*case.images, case.label) if path is not None]
    warnings = (*spec.warnings, *_unused(spec, files), *_shared(spec, cases))
    return replace(spec, cases=cases, test=test, warnings=warnings)


def other_kind(path: Path) -> str | None:
    """The file beside a missing one that differs from it in its ending alone, such as case.nii for case.nii.gz."""
    if os.path.exists(path):  # unlike Path.exists, False for a name that is too long
        return None
    return next((name for name in _names(path.parent) if ending_of(name) and stem_of(name) == stem_of(path)), None)


def _accents(name: str) -> str:
    """The composed form (NFC); file systems and archives also store the decomposed one, which looks the same."""
    return unicodedata.normalize("NFC", name)


def _spelled(folder: Path) -> dict[str, Path]:
    return {_accents(name): folder / name for name in _names(folder)}


def _shared(spec: DatasetSpec, cases: Iterable[CaseSpec]) -> list[str]:
    """A warning for each label map that belongs to several cases."""
    of_label: dict[Path, list[str]] = defaultdict(list)
    for case in cases:
        if case.label is not None:
            of_label[case.label].append(brief(case.case_id, 40))
    return [
        f"{spec.shown(label)} is the label map of {len(ids)} cases ({', '.join(ids[:4])}). Check that this is meant."
        for label, ids in of_label.items()
        if len(ids) > 1
    ]


def _with_label(case: CaseSpec) -> CaseSpec:
    image = case.images[0]
    path = image.parent.with_name("labelsTs") / (case.file_stem + (ending_of(image) or ""))
    found = case.label is None and image.parent.name == "imagesTs" and os.path.isfile(path)
    return replace(case, label=path) if found else case


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # a name that the file system has no bytes for
        return []  # each missing file is named when it is read


def _unused(spec: DatasetSpec, files: Iterable[Path]) -> list[str]:
    """One warning per folder of a layout for its images, and one for its other files; other folders are counted
    together, because there may be one for each case."""
    known = {written for path in files for written in (path, *(written_files(path) if ending_of(path) else ()))}
    own = {spec.folder / name for name in FOLDERS}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for folder in sorted({*own, *(path.parent for path in known)}):
        place = f"{folder.name}: " if folder in own else ""
        for name in _names(folder):
            path = folder / name
            if path in known or (folder not in own and os.path.isdir(path)):
                continue
            if ending_of(name) and not name.startswith("."):
                found[place, "image file(s) belong to no case and are not used"].append(spec.shown(path))
            elif folder != spec.folder:  # dataset.json, tables and texts lie there
                found[place, "other file(s), such as hidden and backup files, are not used"].append(spec.shown(path))
    return [
        f"{place}{len(paths)} {what}, the first is {brief(Path(paths[0]).name if place else paths[0])}."
        for (place, what), paths in found.items()
    ]
