"""A window of planes in which overlapping patches are added up; on disk when it does not fit into memory.

Patches are visited along the first axis, so a plane is finished as soon as no later patch reaches it. Only as many
planes as a patch is thick are ever held, whatever the length of the image.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from medmamba.errors import ResourceError


class PlaneStore:
    """``count`` planes of float32 (classes, J, K), all zero at first.

    With ``scratch`` they are files in that folder, mapped one plane at a time, so that they do not count as memory of
    the process; they are removed when the store is closed.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], scratch: Path | None = None) -> None:
        self.count, self.shape = count, shape
        self._folder: Path | None = None
        self._memory: torch.Tensor | None = None
        if scratch is None:
            self._memory = torch.zeros((count, *shape))
            return
        needed = self.bytes
        free = shutil.disk_usage(scratch).free
        if needed > free:
            raise ResourceError(
                f"Prediction needs {needed / 2**30:.1f} GiB of scratch space, {scratch} has {free / 2**30:.1f} GiB. "
                "Free some space or name another folder with --scratch."
            )
        self._folder = Path(tempfile.mkdtemp(prefix="medmamba-", dir=scratch))

    @property
    def bytes(self) -> int:
        """Size of all planes."""
        return 4 * self.count * int(np.prod(self.shape, dtype=np.int64))

    def plane(self, index: int) -> torch.Tensor:
        """Plane ``index`` (modulo the number of planes); writing into the tensor changes the plane."""
        slot = index % self.count
        if self._memory is not None:
            return self._memory[slot]
        assert self._folder is not None
        path = self._folder / f"{slot}.planes"
        if path.exists():
            return torch.from_numpy(np.memmap(path, np.float32, "r+", shape=self.shape))
        return torch.from_numpy(np.memmap(path, np.float32, "w+", shape=self.shape))

    def close(self) -> None:
        """Let go of memory and disk."""
        self._memory = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
