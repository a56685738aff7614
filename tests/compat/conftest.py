"""Puts this folder on the path of the tests, and takes installed answers away after each."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def answers():
    """The answers are installed for one test."""
    from medmamba import compat

    compat.install()
    yield compat
    compat.uninstall()
