"""Makes the helper `scan_cases` importable for the tests of this folder, also in the processes they start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
