"""Pseudonyms of cases for reports and logs."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmamba.disk.atomic import write_text
from medmamba.images.cases import ImageCase

KEY_FILE = "pseudonyms.csv"


@dataclass(frozen=True)
class Pseudonyms:
    """Salted hashes in place of case ids; without a salt, the ids themselves."""

    salt: str | None

    @classmethod
    def of_folder(cls, folder: Path) -> Pseudonyms:
        """The salt that an earlier run left in the key file of the folder, or a new one."""
        try:
            first = (folder / KEY_FILE).read_text(encoding="utf-8").splitlines()[0]
            return cls(first.removeprefix("# salt "))
        except (OSError, IndexError):
            return cls(secrets.token_hex(16))

    @property
    def active(self) -> bool:
        """Whether ids are replaced."""
        return self.salt is not None

    def of(self, case_id: str) -> str:
        """The name to show for a case."""
        if self.salt is None:
            return case_id
        return "case-" + hashlib.sha256(f"{self.salt}/{case_id}".encode()).hexdigest()[:12]

    def hide(self, line: str, case: ImageCase) -> str:
        """A message with every path and name of the case replaced."""
        if self.salt is None:
            return line
        for path in case.paths:
            for name in (str(path.resolve()), str(path), str(path.parent.resolve()), str(path.parent), path.name):
                if name not in (".", "/"):
                    line = line.replace(name, self.of(case.case_id))
        return line.replace(case.case_id, self.of(case.case_id))

    def write_key(self, folder: Path, case_ids: Sequence[str]) -> None:
        """Write which pseudonym is which case, readable by the owner only. Keep it apart from the report."""
        if self.salt is None:
            return
        text = io.StringIO()
        text.write(f"# salt {self.salt}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "pseudonym"])
        writer.writerows([case_id, self.of(case_id)] for case_id in case_ids)
        write_text(folder / KEY_FILE, text.getvalue())
        os.chmod(folder / KEY_FILE, 0o600)
