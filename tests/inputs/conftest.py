"""Small volumes, good and damaged, made on the spot; and the way to the large real ones."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the checkout, or the one named by MEDMAMBA_SHARED."""
    folder = Path(os.environ.get("MEDMAMBA_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name its folder by MEDMAMBA_SHARED")
    return folder


AFFINE = np.array([[-0.8, 0, 0, 40], [0, 0, 3, -20], [0, 1.25, 0, 7], [0, 0, 0, 1.0]])


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Writes an array as NIfTI with nibabel; ``header`` sets fields, ``patch`` changes the raw bytes behind it."""

    def _save(
        name: str,
        array: np.ndarray,
        affine: np.ndarray = AFFINE,
        *,
        kind: type = nib.Nifti1Image,
        patch: Callable[[bytearray], bytes | None] | None = None,
        **header: object,
    ) -> Path:
        image = kind(array, affine)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        image.header.set_xyzt_units("mm")
        raw = bytearray(image.to_bytes())
        fields = np.frombuffer(raw, dtype=image.header.template_dtype, count=1)[0]
        view = np.frombuffer(memoryview(raw)[: fields.nbytes], dtype=image.header.template_dtype)
        for key, value in header.items():
            view[key] = value
        del view
        if patch is not None:
            raw = patch(raw) or raw
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(bytes(raw), mtime=0) if name.endswith(".gz") else bytes(raw))
        return path

    return _save


@pytest.fixture
def volume() -> np.ndarray:
    """float32 (6, 7, 5), all values different."""
    return np.random.default_rng(0).permutation(6 * 7 * 5).reshape(6, 7, 5).astype(np.float32) - 50
