"""Puts this folder and benchmarks/ on the path of the tests, also in the processes that they start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
