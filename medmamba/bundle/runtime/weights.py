"""Shipped in bundles: trained weights, of which nothing is run; other files are refused in one line."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import monai.handlers
from torch import Tensor, nn

from medmamba.errors import InputError
from medmamba.networks.torch_file import read_torch_file

CURE = "Copy the bundle again, or export the model again."


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's handler, which refuses files that do not hold the network's weights before the engine runs."""

    def attach(self, engine: Any) -> None:
        """Load when the engine starts. Raises InputError for a file that is missing, damaged or of another network."""
        found = _read(self.load_path)
        for name, network in self.load_dict.items():
            if isinstance(network, nn.Module) and self.strict:
                _refuse_others(self.load_path, network, found.get(name, found))
        super().attach(engine)


def load_weights(network: nn.Module, path: str) -> None:
    """Give a network the weights of a file. Raises InputError for a file that does not hold them."""
    state = _read(path)
    _refuse_others(path, network, state)
    network.load_state_dict(state)


def _read(path: str) -> Mapping[str, Any]:
    try:
        return read_torch_file(Path(path), CURE)
    except InputError:
        show_in_one_line()
        raise


def _refuse_others(path: str, network: nn.Module, state: Mapping[str, Any]) -> None:
    """Raises InputError for tensors of other names or shapes than the network's."""
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in state.items()}
    different = sorted({name for name, _ in own.items() ^ given.items()})
    if different:
        show_in_one_line()
        raise InputError(
            f"{path}: the weights of another network: {len(different)} tensors differ in name or shape, such as "
            f"{different[0]}. {CURE}"
        )


def show_in_one_line() -> None:
    """Let a refusal that nobody catches be printed as one line, without the traceback through MONAI."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause: BaseException | None = error  # MONAI wraps errors of what a configuration makes
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            shown(kind, error, trace)
        else:
            print(f"Error: {cause}", file=sys.stderr)

    sys.excepthook = hook
