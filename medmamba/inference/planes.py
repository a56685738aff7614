"""A store of planes in which overlapping patches are summed; on disk when it does not fit into memory.

Patches are visited along the first axis, so a plane is finished as soon as no later patch reaches it. Only as many
planes as a patch is thick are ever held, whatever the length of the image.
"""

import os
import shutil
import tempfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch

from medmamba.disk.atomic import explained
from medmamba.errors import ResourceError, size_text


class PlaneStore:
    """``count`` planes (classes, J, K) of float32 or half precision on a device, all zero at first.

    With ``scratch`` they are in a file without a name in that folder, mapped one plane at a time, so that they do not
    count as memory of the process. The system removes it when the process ends, however it ends.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        scratch: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008, a constant
    ) -> None:
        self.count, self.shape, self.dtype = count, shape, dtype
        self._plane_bytes = dtype.itemsize * prod(shape)
        self._memory: dict[int, torch.Tensor] = {}
        self._device = device
        self._file: IO[bytes] | None = None
        if scratch is None:
            return
        needed = count * self._plane_bytes
        with explained(scratch):
            free = shutil.disk_usage(scratch).free
            if needed <= free:
                self._file = tempfile.TemporaryFile(prefix="medmamba-", dir=scratch)  # noqa: SIM115, see close
                if hasattr(os, "posix_fallocate"):  # writing through a map to a full disk would kill the process
                    os.posix_fallocate(self._file.fileno(), 0, needed)
                else:
                    self._file.truncate(needed)
                return
        raise ResourceError(
            f"Prediction needs {size_text(needed)} of scratch space, {scratch} has {size_text(free)}. "
            "Free some space or name another folder with --scratch."
        )

    def plane(self, index: int) -> torch.Tensor:
        """Plane ``index`` (modulo the number of planes); writing into the tensor changes the plane."""
        slot = index % self.count
        if self._file is None:
            if slot not in self._memory:
                self._memory[slot] = torch.zeros(self.shape, dtype=self.dtype, device=self._device)
            return self._memory[slot]
        place = slot * self._plane_bytes
        stored = np.float16 if self.dtype == torch.half else np.float32
        return torch.from_numpy(np.memmap(self._file, stored, "r+", offset=place, shape=self.shape))

    def take(self, index: int) -> torch.Tensor:
        """Plane ``index``, which is the caller's from now on; its place is all zero again."""
        plane = self.plane(index)
        if self._file is None:
            return self._memory.pop(index % self.count)
        own = plane.clone()
        plane.zero_()
        return own

    def close(self) -> None:
        """Let go of memory and disk."""
        self._memory = {}
        if self._file is not None:
            self._file.close()
