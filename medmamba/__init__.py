"""medmamba: self-configuring medical image segmentation on Mamba networks.

The Python API mirrors the commands: :func:`plan`, :func:`train`, :func:`predict`, :func:`evaluate` and
:class:`Predictor`.
They are imported on first use, so that ``import medmamba`` costs nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmamba.version import __version__ as __version__

# Run from a checkout, the folder medmamba/ hides an installed copy and has no kernels/, plans/ or cli/ inside:
# those stand beside it. Adding the checkout's root to the search path makes `import medmamba.kernels` find them.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "kernels" / "csrc").is_dir():
    __path__.append(str(_checkout))

_API = {
    "plan": "medmamba.pipeline",
    "train": "medmamba.pipeline",
    "predict": "medmamba.pipeline",
    "evaluate": "medmamba.pipeline",
    "Predictor": "medmamba.inference.predictor",
    "Prediction": "medmamba.inference.prediction",
    "FailedPrediction": "medmamba.inference.prediction",
}

if TYPE_CHECKING:
    from medmamba.inference.prediction import FailedPrediction as FailedPrediction
    from medmamba.inference.prediction import Prediction as Prediction
    from medmamba.inference.predictor import Predictor as Predictor
    from medmamba.pipeline import evaluate as evaluate
    from medmamba.pipeline import plan as plan
    from medmamba.pipeline import predict as predict
    from medmamba.pipeline import train as train


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module(_API[name]), name)
    raise AttributeError(f"module 'medmamba' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
