"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def example_data() -> Path:
    """The 60 hippocampus cases of the demonstration."""
    return ROOT / "examples" / "data" / "hippocampus"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The large development data, beside the checkout or where MEDMAMBA_SHARED points; skips without it."""
    folder = Path(os.environ.get("MEDMAMBA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the large development data is not here (set MEDMAMBA_SHARED)")
    return folder
