"""CSV tables of cases: a dataset as a table of paths beside its dataset.json, and the patient of each case.

    case_id,image_0,image_1,label,group,split
    p01_ED,scans/p01.nii.gz,scans/p01_t2.nii.gz,truth/p01.nii.gz,p01,train

Columns: ``case_id`` (the image's name if absent), ``image`` or ``image_0``, ``image_1``, ... in the order of the
channels, ``label``, and if wanted ``group`` or ``patient``, ``split`` (train or test) and ``annotated`` (names of the
labels annotated in the case, separated by ;).
"""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from medmamba.datasets.description import FILE, ListedCases, case_of_files, check_ids, parse
from medmamba.datasets.spec import GROUP_KEYS, VALIDATION, CaseSpec, DatasetSpec
from medmamba.disk.table import read_cell
from medmamba.errors import ConfigError, InputError
from medmamba.images.gate import brief, read_small, shown
from medmamba.plans.folds import groups_by_pattern

LARGEST_BYTES = 100 * 2**20
ID_COLUMNS = ("case_id", "case", "id")
"""Column of the cases in a table of patients."""


def read_table(folder: Path, raw: dict[str, Any], table: Path, *, allow_outside: bool) -> DatasetSpec:
    """The dataset that a table and the dataset.json beside it describe; a table named by the user may lead outside."""
    file = parse(ListedCases, raw)
    spec = file.dataset(folder, "csv")
    problems: list[str] = []
    where = shown(table.name)
    rows, columns = _rows(table, where)
    image_columns = [c for c in ("image", *(f"image_{n}" for n in range(len(columns)))) if c in columns]
    if not image_columns:
        raise InputError(f"{where}: no column image or image_0 (found: {', '.join(columns)[:100]}). Add it.")
    group = next((name for name in GROUP_KEYS if name in columns), "group")
    used = {"case_id", *image_columns, "label", group, "split", "annotated", "fold"}
    unused = [f"{where}: the column {brief(name, 40)!r} is not used." for name in columns if name not in used]
    cases: list[CaseSpec] = []
    test: list[CaseSpec] = []
    for number, row in enumerate(rows, start=2):
        at = f"{where}, line {number}"
        try:
            names = [row[column] for column in image_columns if row[column]]
            label, case_id = row.get("label") or None, row.get("case_id") or None
            case = case_of_files(folder, names, label, case_id, allow_outside=allow_outside)
            annotated = tuple(n.strip() for n in row["annotated"].split(";")) if row.get("annotated") else None
            fold = None if not row.get("fold") else int(row["fold"]) if row["fold"].isdecimal() else VALIDATION - 1
            if strange := [n for n in annotated or () if n not in spec.labels]:
                raise InputError(f"the annotated label {brief(strange[0], 40)!r} is not declared in {FILE}")
            split = (row.get("split") or "train").lower()
            if split not in ("train", "test"):
                raise InputError(f"split is {brief(split, 40)!r}; train or test is needed")
            if split == "train" and label is None:
                raise InputError(f"{brief(case.case_id, 60)}: a training case without a label map")
        except InputError as error:
            problems.append(f"{at}: {error}.")
            continue
        case = replace(case, annotated=annotated, group=row.get(group) or None, fold=fold)
        (cases if split == "train" else test).append(case)
    if not cases and not problems:
        problems.append(f"{where}: no training case. Add one line per case.")
    check_ids([*cases, *test], problems)
    warnings = (*file.unused_keys(), *unused)
    return replace(spec, cases=tuple(cases), test=tuple(test), problems=tuple(problems), warnings=warnings)


def _rows(table: Path, where: str) -> tuple[list[dict[str, str]], list[str]]:
    lines = read_csv(table, where)
    if not lines:
        raise InputError(f"{where}: the table is empty. Add a line of column names and one line per case.")
    empty = [number for number in range(len(lines[0])) if not any(line[number : number + 1] != [""] for line in lines)]
    lines = [[cell for number, cell in enumerate(line) if number not in empty] for line in lines]
    columns = [name.strip().lower() for name in lines[0]]
    if len(set(columns)) != len(columns):
        raise InputError(f"{where}: two columns have the same name. Give each its own.")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise InputError(f"{where}, line {number}: {len(line)} fields, but {len(columns)} columns. Correct it.")
    return [dict(zip(columns, (cell.strip() for cell in line), strict=True)) for line in lines[1:]], columns


def read_csv(path: Path, where: str) -> list[list[str]]:
    """The lines of a CSV file that are not empty, as fields; separated by commas, semicolons or tabs.

    Raises InputError for more than 100 MiB, text that is not UTF-8, and what is no table.
    """
    try:
        text = read_small(path, LARGEST_BYTES, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        lines = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        return [[read_cell(cell) for cell in line] for line in lines if any(line)]
    except csv.Error as error:
        raise InputError(f"{where}: not a table: {error}. Correct it.") from None


def patients_of(spec: DatasetSpec, group_by: str | None = None) -> dict[str, str]:
    """The patient of each training case; a case that is not in it stands alone.

    ``group_by`` is a regular expression whose first group (or whole match) in the case id names the patient, or
    ``TABLE.csv:COLUMN`` for a table with a column ``case_id`` and a column that names the patient. Without it, the
    column ``group`` of the dataset's own table counts.
    """
    ids = [case.case_id for case in spec.cases]
    if group_by is None:
        return {case.case_id: case.group for case in spec.cases if case.group}
    table, colon, column = group_by.rpartition(":")
    if colon and table.lower().endswith(".csv"):
        path = Path(table) if Path(table).exists() else spec.folder / table
        return _from_table(path, column, ids)
    return groups_by_pattern(ids, group_by)


def _from_table(path: Path, column: str, ids: list[str]) -> dict[str, str]:
    where = shown(path)
    columns, *lines = read_csv(path, where) or [[]]
    rows = [dict(zip(columns, line, strict=False)) for line in lines]
    key = next((name for name in ID_COLUMNS if name in columns), None)
    if key is None or column not in columns:
        missing = "case_id" if key is None else column
        raise ConfigError(f"{where}: no column {missing!r} (found: {', '.join(columns)[:100]}). Name another.")
    groups = {row[key].strip(): row.get(column, "").strip() for row in rows if row.get(key)}
    if without := [case_id for case_id in ids if not groups.get(case_id)]:
        raise ConfigError(
            f"{where}: column {column!r} names no patient for {len(without)} of {len(ids)} cases, the first is "
            f"{brief(without[0])}. Complete the table."
        )
    return {case_id: groups[case_id] for case_id in ids}
