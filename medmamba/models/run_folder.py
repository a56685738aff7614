"""The paths of a run folder.

    RUN/plan.json  fingerprint.json  splits.json
    RUN/preprocessed/<configuration>/<case>/
    RUN/models/<configuration>/fold_<k>/   plan.json model.json train.json metrics.csv checkpoints/

A fold's folder holds its own copy of the plan, so it can be moved away and still predicts.

A command that uses the cases locks the part that it writes or reads (a fold, RUN/report); one that replaces them locks
RUN and all these parts. The table of pairs is in docs/how-to/train.md.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medmamba.disk.lock import FolderLock
from medmamba.disk.own_files import OwnFiles
from medmamba.errors import InputError
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.folds import Fold
from medmamba.plans.json_record import as_written, read_stored
from medmamba.plans.schema import Plan


class RunFolder:
    """The paths of one run; ``aside_path`` holds the old plan while its cases are replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan_path, self.aside_path = path / "plan.json", path / "plan.before.json"
        self.fingerprint_path, self.splits_path = path / "fingerprint.json", path / "splits.json"
        self.patients_path = path / "patients.json"
        self.preprocessed_path = path / "preprocessed"

    def preprocessed(self, configuration: str) -> Path:
        return self.preprocessed_path / configuration

    def fold(self, configuration: str, fold: int | str) -> Path:
        return self.path / "models" / configuration / f"fold_{fold}"

    def trained_folds(self, configuration: str) -> list[Path]:
        """Folders of the folds that have a checkpoint."""
        return sorted(path.parent.parent for path in self.path.glob(f"models/{configuration}/fold_*/checkpoints/last"))

    def own_files(self, *, overwrite: bool = False) -> OwnFiles:
        """Proof of the files that medmamba wrote; those beside a plan of an earlier version, without proof, are."""
        own = OwnFiles(self.path, overwrite)
        if not own.knows(self.plan_path) and self.previous_plan() is not None:
            known = ("plan.json", "fingerprint.json", "splits.json", "best.json", "report/*.html", "report/*.json")
            own.adopt(path for pattern in known for path in sorted(self.path.glob(pattern)))
        return own

    def read_plan(self) -> Plan:
        return read_plan(self.plan_path)

    def previous_plan(self) -> Plan | None:
        """The plan before this planning; None in a new folder."""
        path = next((path for path in (self.plan_path, self.aside_path) if path.is_file()), None)
        return None if path is None else read_plan(path)

    def set_plan_aside(self) -> None:
        """Rename the plan: a kill before the new plan is written neither loses it nor leaves it with new cases."""
        if self.plan_path.is_file():
            self.plan_path.replace(self.aside_path)

    @contextmanager
    def replacing_cases(self) -> Iterator[None]:
        """Exclusive lock while plan and cases are replaced; raises InputError while another process uses them."""
        with ExitStack() as locks:
            locks.enter_context(FolderLock(self.path, patience_seconds=1.0))  # others hold it briefly
            for pattern in ("models/*/fold_*/.lock", "pretrained/*/.lock", "report/.lock"):
                for lock in sorted(self.path.glob(pattern)):
                    locks.enter_context(FolderLock(lock.parent))
            yield

    def need_cases(self, plan: Plan) -> None:
        """Raises InputError for a converted model, which has no preprocessed cases to train on or to validate with."""
        if plan.conventions == "nnunet" and not self.preprocessed_path.is_dir():
            raise InputError(
                f"{self.path}: a converted model, without preprocessed cases. Add those of its dataset with `medmamba "
                f"plan DATASET -o {self.path} --like {self.path}`, or plan a run of your own with `-o RUN --like`."
            )

    def check_unchanged(self, plan: Plan) -> None:
        """Called after locking a part of the run; raises InputError if its cases are no longer those of ``plan``."""
        with FolderLock(self.path, shared=True):
            if self.read_plan().hash() != plan.hash():
                raise InputError(f"{self.path}: planned again in the meantime. Start the command again.")

    def read_fingerprint(self) -> Fingerprint:
        """The measured facts that the plan was made from."""
        return Fingerprint.read(self.fingerprint_path)

    def read_patients(self) -> dict[str, str]:
        """The patient of each case, where some have several; a case that is not named stands alone."""
        if not self.patients_path.is_file():
            return {}
        return read_stored(self.patients_path, dict[str, str], "table of patients", "Run `medmamba plan` again.")

    def read_splits(self) -> list[Fold]:
        """Training and validation case ids of each fold."""
        kind, cure = "list of folds", "Run `medmamba plan` again."
        stored = read_stored(self.splits_path, list[dict[str, list[str]]], kind, cure)
        with as_written(self.splits_path, kind, cure):
            return [Fold(train=fold["train"], val=fold["val"]) for fold in stored]


def is_plan(path: Path, sha256: str) -> bool:
    """Whether a plan file is the one of this hash; as text, too: plans of an earlier version have fewer fields."""
    return sha256 in (read_plan(path).hash(), hashlib.sha256(path.read_bytes()).hexdigest())


def read_plan(path: Path) -> Plan:
    """Read and check a plan file."""
    if not path.exists():
        if path.with_name("plan.before.json").is_file():
            raise InputError(
                f"{path.parent}: `medmamba plan` is replacing its cases, or was killed. Wait, or plan again."
            )
        raise InputError(f"{path}: not found. Give the folder that `medmamba plan DATASET -o RUN` wrote.")
    return Plan.read(path)
