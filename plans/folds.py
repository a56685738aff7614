"""Folds for cross-validation: seeded, grouped by patient, balanced over the labels, at most one per group.

A fold names the cases to train on and those to validate on. Cases of one group (a patient, or copies of one image) are
never split between the two.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from medmamba.errors import ConfigError, InputErrors, counted
from medmamba.plans.fingerprint import Fingerprint

N_FOLDS = 5
"""Source: nnU-Net."""

SEED = 12345
"""Source: nnU-Net, the seed of its five-fold split."""


class Fold(TypedDict):
    """Case ids to train on and to validate on, both sorted; a list of these is nnU-Net's splits_final.json."""

    train: list[str]
    val: list[str]


def make_folds(
    case_ids: Sequence[str],
    *,
    labels_of: Mapping[str, Iterable[str]] | None = None,
    group_of: Mapping[str, str] | None = None,
    seed: int = SEED,
) -> list[Fold]:
    """min(N_FOLDS, groups) folds in which every label is spread as evenly as its cases allow.

    ``labels_of`` gives the labels present in a case, ``group_of`` the group it must stay with (default: itself).
    A single group gives one fold that trains and validates on the same cases; callers must say so to the user.
    """
    ids = sorted(case_ids)
    groups: dict[str, list[str]] = {}
    for case_id in ids:
        groups.setdefault((group_of or {}).get(case_id, case_id), []).append(case_id)
    count = min(N_FOLDS, len(groups))
    if count < 2:
        return [Fold(train=ids, val=list(ids))] if ids else []
    parts = _spread(groups, labels_of or {}, count, np.random.default_rng(seed))
    return [Fold(train=[i for i in ids if i not in held_out], val=sorted(held_out)) for held_out in parts]


def groups_of(fingerprint: Fingerprint, patients: Mapping[str, str]) -> dict[str, str]:
    """The group of each case: all cases of its patient and all copies of its image, merged where they overlap.

    ``patients`` names the patient of a case; a case that is not in it stands alone.
    """
    parent = {case.case_id: case.case_id for case in fingerprint.cases}

    def root(case_id: str) -> str:
        while parent[case_id] != case_id:
            case_id = parent[case_id]
        return case_id

    for grouping in (patients, {case.case_id: case.image_hash for case in fingerprint.cases if case.image_hash}):
        leader: dict[str, str] = {}
        for case_id in sorted(grouping):
            one, other = sorted((root(leader.setdefault(grouping[case_id], case_id)), root(case_id)))
            parent[other] = one
    return {case_id: root(case_id) for case_id in parent}


def groups_by_pattern(case_ids: Sequence[str], pattern: str) -> dict[str, str]:
    """Group of each case: the first group of ``pattern`` (or its whole match) found in the case id.

    >>> groups_by_pattern(["scd_HF-I-01_ED", "scd_HF-I-01_ES"], r"(.*)_E[DS]$")
    {'scd_HF-I-01_ED': 'scd_HF-I-01', 'scd_HF-I-01_ES': 'scd_HF-I-01'}
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"group pattern {pattern!r} is not a regular expression: {error}. Correct it.") from None
    groups, without = {}, []
    for case_id in case_ids:
        found = compiled.search(case_id)
        name = found and (found.group(1) if compiled.groups else found.group(0))
        if not name:
            without.append(case_id)
        else:
            groups[case_id] = name
    if without:
        raise ConfigError(
            f"group pattern {pattern!r} finds no patient in {len(without)} of {len(case_ids)} case ids, the first is "
            f"{without[0]!r}. Write a pattern that matches every case id."
        )
    return groups


def check_folds(folds: Sequence[Fold], case_ids: Sequence[str], group_of: Mapping[str, str] | None = None) -> None:
    """Refuse an own split that leaks, or names unknown cases; raises InputErrors with one line per fault."""
    known, groups = set(case_ids), group_of or {}
    problems = []
    for number, fold in enumerate(folds):
        faults = []
        for part, names in (("train", fold["train"]), ("val", fold["val"])):
            faults += [
                f"{part} names {name!r}, which is not a case of this dataset." for name in names if name not in known
            ]
            faults += [f"{part} names {name!r} twice." for name, count in sorted(Counter(names).items()) if count > 1]
            if not names:
                faults.append(f"{part} is empty.")
        both = set(fold["train"]) & set(fold["val"])
        faults += [f"{name!r} is in train and in val. Remove it from one of them." for name in sorted(both)]
        trained = {groups.get(name, name): name for name in fold["train"]}
        faults += [
            f"{name!r} (val) and {trained[group]!r} (train) belong to the same patient or are the same image. "
            f"Put both in the same part."
            for name in fold["val"]
            if (group := groups.get(name, name)) in trained and name not in both
        ]
        problems += [f"fold {number}: {fault}" for fault in faults]
    if problems:
        raise InputErrors(*problems, f"split file: {counted(len(problems), 'problem')}; nothing was done.")


def _spread(
    groups: Mapping[str, Sequence[str]],
    labels_of: Mapping[str, Iterable[str]],
    count: int,
    generator: np.random.Generator,
) -> list[set[str]]:
    """Give each group to the fold that lacks its rarest labels most, then to the smallest fold."""
    labels = sorted({label for names in labels_of.values() for label in names})
    column = {label: index for index, label in enumerate(labels)}
    names = sorted(groups)
    table = np.zeros((len(names), len(labels)))  # cases of each group that contain each label
    for row, name in enumerate(names):
        for case_id in groups[name]:
            for label in labels_of.get(case_id, ()):
                table[row, column[label]] += 1
    frequency = table.sum(axis=0)
    shuffled = [int(row) for row in generator.permutation(len(names))]
    # Groups with rare labels first (they have the fewest good places), large groups before small ones.
    rarest = [min((frequency[c] for c in np.flatnonzero(table[row])), default=np.inf) for row in range(len(names))]
    order = sorted(shuffled, key=lambda row: (rarest[row], -len(groups[names[row]])))

    held_out: list[set[str]] = [set() for _ in range(count)]
    filled = np.zeros((count, len(labels)))
    for row in order:
        present = sorted(np.flatnonzero(table[row]), key=lambda c: (frequency[c], c))
        keys = [
            (*(filled[fold, c] for c in present[:1]), len(held_out[fold]), *(filled[fold, c] for c in present[1:]))
            for fold in range(count)
        ]
        best = min(range(count), key=lambda fold: keys[fold])
        held_out[best].update(groups[names[row]])
        filled[best] += table[row]
    return held_out
