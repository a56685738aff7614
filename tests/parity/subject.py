"""A rebuilt model, and how to speak about it in the original's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from medmamba.networks.published.weights import RULES, our_name

# Of the originals that are rebuilt here alone, because no weights of theirs are published for a use of ours.
RULES |= {
    "lamamba": (
        (r"^(.*\.)?(attn\.relative_position_index|attn_mask)$", ""),  # computed from the sizes
        *RULES["hrvmamba"],
    ),
    "mamba2": ((r"(^|\.)(dt_bias|A_log|D)$", r"\1scan.\2"),),
}


@dataclass
class Subject:
    """A rebuilt model with the original's names for its parts.

    Attributes:
        family: whose renaming rules apply (see ``published/weights.py``).
        network: a whole network (its tolerances are wider than a block's).
        inputs: keys of the tensors the model takes.
        channels_first: the original's block takes (B, C, H, W) where ours takes (B, H, W, C).
    """

    module: nn.Module
    family: str
    network: bool = False
    inputs: tuple[str, ...] = ("input",)
    channels_first: bool = False

    def run(self, *inputs: Tensor) -> Any:
        """The model's result for inputs in the original's layout."""
        if self.channels_first:
            return self.module(*(x.movedim(1, -1) for x in inputs)).movedim(-1, 1)
        return self.module(*inputs)

    def our_name(self, original: str) -> str:
        """Where the original's parameter lives here."""
        return our_name(original, self.family)

    def original(self, name: str) -> str:
        """Our parameter name in the original's words (published sizes, whose parameters are drawn by name)."""
        return name

    def module_name(self, original: str) -> str:
        """Where the original's submodule lives here."""
        return self.our_name(original + ".").removesuffix(".")

    def intermediate(self, name: str, output: Any) -> Tensor:
        """A submodule's output in the original's layout."""
        return output

    def outputs(self, result: Any) -> dict[str, Tensor]:
        """Results by the keys under which files store them."""
        if isinstance(result, Tensor):
            return {"output": result}
        return {f"output{i}": tensor for i, tensor in enumerate(result)}
