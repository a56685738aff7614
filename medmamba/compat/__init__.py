"""The names of mamba_ssm, causal_conv1d and VMamba's kernels, answered by medmamba's operators on any device.

`install` (or ``python -m medmamba.compat SCRIPT ARGS...``) makes published Mamba code run unmodified: its imports find
the modules of this package. Nothing is answered before. Signatures, parameter names, initial distributions and keys of
state dicts are those of the originals (docs/reference/compat.md); the code is medmamba's.
"""

from medmamba.compat.install import install, uninstall
from medmamba.compat.usage import report

__all__ = ["install", "report", "uninstall"]
