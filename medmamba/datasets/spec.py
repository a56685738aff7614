"""The content of a dataset, independent of its layout on disk: channels, labels, and the files of each case."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from medmamba.errors import as_text
from medmamba.images import stem_of
from medmamba.images.cases import case_names
from medmamba.images.gate import brief

VALIDATION = -1
GROUP_KEYS = ("group", "patient", "patient_id", "subject", "subject_id")
"""Keys and columns that name the patient of a case; the first that is there counts."""


@dataclass(frozen=True)
class CaseSpec:
    """The files of one case.

    Args:
        case_id: unique in its dataset; masks get this name.
        images: one file with all channels, or one file per channel, in the order of the channels.
        label: the label map; None for a case without ground truth.
        annotated: names of the labels that were annotated in this case; None for all of them.
        group: the patient or site that the case belongs to, if the dataset says so.
        fold: the fold that it validates, if the dataset states it; VALIDATION if it is never trained on.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotated: tuple[str, ...] | None = None
    group: str | None = None
    fold: int | None = None

    @property
    def file_stem(self) -> str:
        """The case id as its files are called: with bytes that are not text, and without the number of a channel."""
        stem = stem_of(self.images[0])
        return next(
            (name for name in (stem, stem.removesuffix("_0000")) if as_text(name) == self.case_id), self.case_id
        )


def named_apart(cases: list[CaseSpec]) -> list[CaseSpec]:
    """Cases named after their files, or after the differing part of the path where file names are equal."""
    if len({case.case_id for case in cases}) == len(cases):
        return cases
    names = case_names([case.images[0] for case in cases])
    return [replace(case, case_id=name) for case, name in zip(cases, names, strict=True)]


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset as its own files describe it; nothing of it is copied or renamed.

    Args:
        name: as written in dataset.json, or the folder's name.
        folder: where it lies.
        layout: "decathlon", "nnunet" or "csv".
        channels: name of each channel, in order.
        labels: value in the files by name, background (0) first; values need not be consecutive.
        cases, test: training cases and test cases.
        regions: values by name of region, where several values together are one structure; empty if there are none.
        region_order: value written for each region, in the order of writing (nnU-Net's regions_class_order).
        ignore: value of voxels that are not to be learned from.
        splits: (training ids, validation ids) per fold, if the dataset comes with its own.
        problems, warnings: errors and warnings of the description itself, one line each.
    """

    name: str
    folder: Path
    layout: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    cases: tuple[CaseSpec, ...]
    test: tuple[CaseSpec, ...] = ()
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    region_order: tuple[int, ...] = ()
    ignore: int | None = None
    splits: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    description: str = ""
    reference: str = ""
    licence: str = ""
    release: str = ""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """All values that a label map of this dataset may hold, in ascending order; the ignore value among them."""
        extra = () if self.ignore is None else (self.ignore,)
        return tuple(sorted({*self.labels.values(), *extra, *(v for vs in self.regions.values() for v in vs)}))

    @property
    def channel_files(self) -> int:
        """Files CASE_0000, CASE_0001, ... that a case may have; 0: such a number belongs to the name of the case."""
        split = any(len(case.images) > 1 or stem_of(case.images[0]) == f"{case.file_stem}_0000" for case in self.cases)
        return len(self.channels) if split else 0

    def case(self, case_id: str) -> CaseSpec:
        """The training or test case of that id."""
        for case in (*self.cases, *self.test):
            if case.case_id == case_id:
                return case
        raise KeyError(case_id)

    def shown(self, path: Path) -> str:
        """A path as messages show it: relative to the dataset where it lies inside."""
        return brief(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path, 80)
