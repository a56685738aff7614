"""Shipped in bundles: the sliding window over an image on the plan's grid, as medmamba predicts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import Tensor, nn

from medmamba.bundle.runtime.expected import MEASURED, ExpectedMasks
from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.bundle.runtime.plan import read_numbers
from medmamba.bundle.runtime.weights import load_weights
from medmamba.geometry import Grid
from medmamba.inference.cascade import prepare_stage
from medmamba.inference.confidence import Confidence
from medmamba.inference.cpu import with_fast_convolutions
from medmamba.inference.sliding_window import Window, stream_logits
from medmamba.models.output_channels import OutputChannels
from medmamba.preprocessing.case import PreprocessedCase


class PlanInferer(Inferer):
    """Overlapping patches, Gaussian weights, mirroring, mean over the folds; the arguments are fields of Window.

    With the rules of ``expected`` quality the logits of a MetaTensor carry what was measured for them.
    """

    def __init__(self, skip_empty: bool = True, expected: ExpectedMasks | None = None, **window: Any) -> None:
        super().__init__()
        self.expected = expected
        lists = {name: tuple(value) for name, value in window.items() if isinstance(value, list)}
        self.window = Window(skip_empty=skip_empty, **{**window, **lists})

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, classes, I, J, K) of images (B, C, I, J, K) on the CPU; float32, or half with ``half_sums``."""
        batch = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        seen = [None if self.expected is None else self.expected.confidence() for _ in batch]
        pairs = zip(batch, seen, strict=True)
        logits = torch.stack([torch.stack(list(self.planes(image, network, one)), dim=1) for image, one in pairs])
        if self.expected is None or not isinstance(inputs, MetaTensor):
            return logits
        measured = [self.expected.measured(one, network) for one in seen if one is not None]
        carrier = MetaTensor(logits, meta={**inputs.meta, MEASURED: measured})
        carrier.is_batch = True
        return carrier

    def planes(
        self, image: Tensor, network: Callable[..., Tensor], confidence: Confidence | None = None
    ) -> Iterator[Tensor]:
        """The planes (classes, J, K) of the logits of one image (C, I, J, K), in order.

        ``network``: a SegmentationNetwork; or anything else that makes logits of patches on the device of the image,
        such as a TorchScript module or a client's wrapper of one. ``confidence`` sees what each says.
        """
        if isinstance(network, SegmentationNetwork):
            runners = [_runner(member) for member in network.members]
        else:
            runners = [_runner(network, image.device)]
        return stream_logits(runners, image.float().cpu(), self.window, confidence=confidence)


class Stage:
    """A configuration beside the main network, as first stage of a cascade or in an ensemble.

    ``plan`` is an entry of configs/inference.json, ``weights`` the file of its state dict, and ``previous``
    the first stage, if this is the second of a cascade.
    """

    def __init__(
        self,
        plan: Mapping[str, Any],
        network: SegmentationNetwork,
        weights: str,
        inferer: PlanInferer,
        device: torch.device | str = "cpu",
        previous: "Stage | None" = None,
    ) -> None:
        self.plan = read_numbers(plan)
        self.heads = OutputChannels.of_plan(self.plan)
        load_weights(network, weights)
        self.network, self.inferer, self.previous = network.to(device), inferer, previous

    def prepare(self, name: str, array: NDArray[Any], grid: Grid) -> PreprocessedCase:
        """An image (C, i, j, k) on this configuration's grid."""
        return prepare_stage(name, array, grid, self.plan, self.plan, self.previous)

    def planes(self, image: Tensor) -> Iterator[Tensor]:
        """Planes of logits (classes, J, K) of an image (C, I, J, K) on this configuration's grid."""
        return self.inferer.planes(image, self.network)


def _runner(network: Callable[..., Tensor], device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    if isinstance(network, nn.Module):
        device = next((parameter.device for parameter in network.parameters()), torch.device(device))
        if device.type == "cpu" and not isinstance(network, torch.jit.ScriptModule):
            with_fast_convolutions(network)  # the same arithmetic as medmamba's own prediction
    return lambda patches: network(patches.to(device))
