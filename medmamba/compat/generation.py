"""What modules of mamba_ssm import for language models: the record of an inference, and names that say no."""

from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor


@dataclass
class InferenceParams:
    """States of layers during step-by-step inference; layers find theirs by their ``layer_idx``."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin a new sequence."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


class GenerationMixin:
    """A base class that networks inherit from without using it."""

    def generate(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises NotImplementedError: text is not generated here."""
        raise NotImplementedError("medmamba.compat generates no text; use mamba_ssm itself for language models.")


def load_config_hf(model_name: str) -> NoReturn:
    """Raises NotImplementedError: nothing is downloaded."""
    raise NotImplementedError(f"medmamba.compat downloads nothing: read the configuration of {model_name} from a file.")


def load_state_dict_hf(model_name: str, device: object = None, dtype: object = None) -> NoReturn:
    """Raises NotImplementedError: nothing is downloaded."""
    raise NotImplementedError(f"medmamba.compat downloads nothing: load the weights of {model_name} from a file.")
