"""Names to show in place of case names, and the table that says which is which."""

import csv
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from medmamba.disk.atomic import write_atomically
from medmamba.disk.own_files import real_path
from medmamba.disk.table import read_cell, table_text
from medmamba.errors import InputError
from medmamba.images.cases import ImageCase

KEY_FILE = "pseudonyms.csv"
_SALT = re.compile(r"# salt ([0-9a-f]{32})\n")
_KEEP_KEY = "It names the cases of earlier reports: restore it, or move it away to begin a new one."


@dataclass(frozen=True)
class Pseudonyms:
    """Salted hashes in place of case ids; without a salt, the ids themselves."""

    salt: str | None

    @classmethod
    def of_folder(cls, folder: Path) -> "Pseudonyms":
        """The salt that an earlier run left in the key file of the folder, or a new one.

        Raises InputError for a key file that cannot be read: a new one would replace the names of earlier reports.
        """
        text = _key_of(folder)
        salt = _SALT.match(text)
        if text and not salt:
            raise InputError(f"{folder / KEY_FILE}: not a table of pseudonyms as medmamba writes it. {_KEEP_KEY}")
        return cls(salt[1] if salt else secrets.token_hex(16))

    def of(self, case_id: str) -> str:
        """The name to show for a case."""
        if self.salt is None:
            return case_id
        return "case-" + hashlib.sha256(f"{self.salt}/{case_id}".encode()).hexdigest()[:12]

    def hide(self, line: str, case: ImageCase) -> str:
        """A message with every path and name of the case replaced."""
        if self.salt is None:
            return line
        inside = [entry for path in case.paths if path.is_dir() for entry in path.iterdir()]
        for path in (*case.paths, *inside):
            for name in (str(real_path(path)), str(path), str(real_path(path.parent)), str(path.parent), path.name):
                if name not in (".", "/"):
                    line = line.replace(name, self.of(case.case_id))
        return line.replace(case.case_id, self.of(case.case_id))

    def write_key(self, folder: Path, case_ids: Sequence[str]) -> None:
        """Write which pseudonym is which case, readable by the owner only. Keep it apart from the report.

        Cases of earlier runs stay in it; nothing is written when all are there.
        """
        if self.salt is None:
            return
        before = _key_of(folder)
        rows = {row[1]: [read_cell(row[0]), row[1]] for row in list(csv.reader(StringIO(before)))[2:] if len(row) == 2}
        rows |= {self.of(case_id): [case_id, self.of(case_id)] for case_id in case_ids if self.of(case_id) not in rows}
        text = f"# salt {self.salt}\n{table_text(['case', 'pseudonym'], rows.values())}"
        if text != before:
            with write_atomically(folder / KEY_FILE, mode=0o600) as file:
                file.write(text.encode("utf-8", "backslashreplace"))


def _key_of(folder: Path) -> str:
    """The key file of a folder; empty where there is none."""
    try:
        return (folder / KEY_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "not UTF-8").lower()
        raise InputError(
            f"{folder / KEY_FILE}: the table of pseudonyms cannot be read: {reason}. {_KEEP_KEY}"
        ) from None
