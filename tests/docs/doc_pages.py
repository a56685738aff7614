"""The pages of the documentation, their code blocks, and what the tests do with each kind of block."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "kernels/README.md")),
    ROOT / "plans" / "README.md",
]

KINDS = {
    "sh": "run by bash, line by line as it stands (test_pages_run.py)",
    "python": "run (test_pages_run.py)",
    "json": "read by the reader that it is written for (test_pages_run.py, tests/datasets/test_datasets_page.py)",
    "text": "nothing to run: what a command prints, a table of files, a figure",
}

NOT_RUN = {
    "make ": "installs from a package index; `make -n` must find every target",
    "python benchmarks/": "takes hours, and nnU-Net beside; the script must exist and know the options",
    "python -m pytest -m gpu": "needs a GPU; the folder must exist",
}
"""Beginnings of lines that no test runs, with the reason and what is checked instead."""

SHORTER = {
    "--pilot 40": "--pilot 0.02",
    "--fold 0-4 --devices cuda:0,cuda:1": "--fold 0,1 --devices cpu,cpu",
    "--epochs 10 --iterations 250": "--epochs 1 --iterations 2",
}
"""What is exchanged in a line so that it ends soon, and without a GPU."""

ADDED = {
    "demo": ["--data", "DATASET", "--steps", "1", "--test-cases", "1"],
    "plan": ["--patch-size", "16,24,16", "--batch-size", "2"],
    "train": ["--steps", "1", "--steps-per-epoch", "1", "--workers", "0"],
    "pretrain": ["--steps", "1", "--workers", "0"],
    "predict": ["--fast"],
    "find-best": ["--no-mirror"],
    "export": ["--no-mirror", "--most-cases", "1"],
}
"""Options that are added to a command for the same purpose."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language and its lines."""

    kind: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines of a shell block, those that end in a backslash joined."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def name_of(path: Path) -> str:
    """Name of a page below the root, for messages."""
    return path.relative_to(ROOT).as_posix()


def blocks_of(path: Path, *kinds: str) -> list[Block]:
    """Blocks of a page in order; all of them without ``kinds``."""
    found = re.findall(r"^ *```(.*)\n((?:.*\n)*?) *```$", path.read_text(encoding="utf-8"), re.M)
    return [Block(kind.strip(), text) for kind, text in found if not kinds or kind.strip() in kinds]


def not_run(line: str) -> bool:
    """Whether this line of a shell block is among the exceptions."""
    return line.startswith(tuple(NOT_RUN))
