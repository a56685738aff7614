"""A CSV of paths: one line per case, beside a dataset.json with the names of channels and labels.

    case_id,image_0,image_1,label,group,split
    p01_ED,scans/p01.nii.gz,scans/p01_t2.nii.gz,truth/p01.nii.gz,p01,train

Columns: ``case_id`` (the image's name if absent), ``image`` or ``image_0``, ``image_1``, ... in the order of the
channels, ``label``, and if wanted ``group`` (patient), ``split`` (train or test) and ``annotated`` (names of the
labels annotated in the case, separated by ;).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from medmamba.datasets.description import FILE, ListedCases, check_ids, parse
from medmamba.datasets.names import case_id_problem, files_of_case
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError
from medmamba.images import stem_of
from medmamba.images.gate import brief, read_small, shown

LARGEST_BYTES = 100 * 2**20


def read_table(folder: Path, raw: dict[str, Any], table: Path, *, allow_outside: bool) -> DatasetSpec:
    """The dataset that a table and the dataset.json beside it describe.

    Args:
        allow_outside: paths may lead out of the folder; for a table that the user named himself.
    """
    file = parse(ListedCases, raw)
    channels, labels, ignore = file.contents(folder)
    problems: list[str] = []
    where = shown(table.name)
    rows, columns = _rows(table, where)
    image_columns = [c for c in ("image", *(f"image_{n}" for n in range(len(columns)))) if c in columns]
    if not image_columns:
        raise InputError(f"{where}: no column image or image_0 (found: {', '.join(columns)[:100]}). Add it.")
    cases: list[CaseSpec] = []
    test: list[CaseSpec] = []
    for number, row in enumerate(rows, start=2):
        at = f"{where}, line {number}"
        try:
            names = [row[column] for column in image_columns if row[column]]
            images, label = files_of_case(folder, names, row.get("label") or None, allow_outside=allow_outside)
            case_id = row.get("case_id") or stem_of(images[0])
            if problem := case_id_problem(case_id):
                raise InputError(f"{brief(case_id, 60)}: {problem}")
            annotated = tuple(n.strip() for n in row["annotated"].split(";")) if row.get("annotated") else None
            if strange := [n for n in annotated or () if n not in labels]:
                raise InputError(f"the annotated label {brief(strange[0], 40)!r} is not declared in {FILE}")
            split = (row.get("split") or "train").lower()
            if split not in ("train", "test"):
                raise InputError(f"split is {brief(split, 40)!r}; train or test is needed")
            if split == "train" and label is None:
                raise InputError(f"{brief(case_id, 60)}: a training case without a label map")
        except InputError as error:
            problems.append(f"{at}: {error}.")
            continue
        (cases if split == "train" else test).append(
            CaseSpec(case_id, images, label, annotated, row.get("group") or None)
        )
    if not cases and not problems:
        problems.append(f"{where}: no training case. Add one line per case.")
    check_ids([*cases, *test], problems)
    return DatasetSpec(
        **file.about(folder),
        layout="csv",
        channels=channels,
        labels=labels,
        cases=tuple(cases),
        test=tuple(test),
        ignore=ignore,
        problems=tuple(problems),
    )


def _rows(table: Path, where: str) -> tuple[list[dict[str, str]], list[str]]:
    lines = read_csv(table, where)
    if not lines:
        raise InputError(f"{where}: the table is empty. Add a line of column names and one line per case.")
    columns = [name.strip().lower() for name in lines[0]]
    if len(set(columns)) != len(columns):
        raise InputError(f"{where}: two columns have the same name. Give each its own.")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise InputError(f"{where}, line {number}: {len(line)} fields, but {len(columns)} columns. Correct it.")
    return [dict(zip(columns, (cell.strip() for cell in line), strict=True)) for line in lines[1:]], columns


def read_csv(path: Path, where: str) -> list[list[str]]:
    """The lines of a CSV file that are not empty, as fields; separated by commas, semicolons or tabs.

    Raises:
        InputError: larger than 100 MiB, not UTF-8, or no table.
    """
    try:
        text = read_small(path, LARGEST_BYTES, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        return [line for line in csv.reader(io.StringIO(text), delimiter=separator, strict=True) if any(line)]
    except csv.Error as error:
        raise InputError(f"{where}: not a table: {error}. Correct it.") from None
