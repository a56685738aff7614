"""The meaning of a network's output channels, and the conversions between label maps and channels.

Label indices count the labels of the plan: 0 is the background, 1 ... n-1 the labels in the plan's order, and n marks
voxels to ignore (in training label maps only; see medmamba/preprocessing/labels.py).

    softmax channels   channel c is label index c; one of them holds in each voxel
    sigmoid channels   channel c is region c, a set of labels; any number of them holds in each voxel
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from medmamba.errors import ConfigError
from medmamba.plans.schema import Plan
from medmamba.preprocessing.labels import ignore_index, label_names

DEFAULT_THRESHOLD = 0.5
"""The probability above which a voxel belongs to a region, unless find-best chose another."""


@dataclass(frozen=True)
class OutputChannels:
    """The name (label or region) of each output channel, and its label indices (``members``).

    A channel leaves the index ``written`` in a label map; later channels overwrite earlier ones. ``label_swap`` and
    ``channel_swap`` map an index (also that of ignored voxels) or channel to its left-right counterpart.
    """

    names: tuple[str, ...]
    sigmoid: bool
    members: tuple[tuple[int, ...], ...]
    written: tuple[int, ...]
    ignore: int | None
    label_swap: tuple[int, ...]
    channel_swap: tuple[int, ...]
    in_order: bool = False
    """Whether later channels overwrite earlier ones even if no label belongs to two of them."""

    @classmethod
    def of_plan(cls, plan: Plan) -> "OutputChannels":
        """Raises ConfigError when regions cannot be written back to the labels they came from."""
        labels = ["background", *label_names(plan)]
        index = {name: number for number, name in enumerate(labels)}
        swap = list(range(len(labels) + 1))
        for left, right in plan.left_right_pairs:
            swap[index[left]], swap[index[right]] = index[right], index[left]
        ignore = ignore_index(plan) if plan.ignore_label is not None else None
        if plan.regions is None:
            softmax = cls.of_labels(labels)
            return replace(softmax, ignore=ignore, label_swap=tuple(swap), channel_swap=tuple(swap[:-1]))
        members = tuple(tuple(sorted(index[part] for part in parts)) for parts in plan.regions.values())
        written = tuple(index[name] for name in plan.region_order or ())
        if plan.conventions == "medmamba":
            _refuse_lossy_order(labels, list(plan.regions), members, written)
        mirrored = [tuple(sorted(swap[label] for label in group)) for group in members]
        channels = (members.index(other) if other in members else own for own, other in enumerate(mirrored))
        in_order = plan.conventions == "nnunet"
        return cls(tuple(plan.regions), True, members, written, ignore, tuple(swap), tuple(channels), in_order)

    @classmethod
    def of_labels(cls, names: Sequence[str]) -> "OutputChannels":
        """Softmax channels of labels without left and right, the background first."""
        numbers = tuple(range(len(names)))
        return cls(tuple(names), False, tuple((n,) for n in numbers), numbers, None, (*numbers, len(names)), numbers)

    @property
    def structures(self) -> range:
        """The channels that are structures: not the background of softmax heads."""
        return range(0 if self.sigmoid else 1, len(self.names))

    @property
    def disjoint(self) -> bool:
        """Whether no label belongs to two channels, so that the largest logit decides between them."""
        joined = [label for group in self.members for label in group]
        alone = len(joined) == len(set(joined)) and all(len(group) == 1 for group in self.members)
        return alone and not self.in_order

    def truth(self, target: torch.Tensor) -> torch.Tensor:
        """(B, 1, ...) label indices to channels (B, C, ...) of 0 and 1; ignored voxels are 0 everywhere."""
        table = _members_of_labels(self.members, len(self.label_swap), target.device)
        return torch.movedim(table[target[:, 0]], -1, 1)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (C, ...) to the probability of each channel."""
        return torch.sigmoid(logits) if self.sigmoid else torch.softmax(logits, dim=0)

    def label_map(self, scores: torch.Tensor, thresholds: Sequence[float] | None = None) -> torch.Tensor:
        """Scores (C, ...) to label indices (...); sigmoid channels count above their threshold, without any above 0."""
        if not self.sigmoid:
            return largest_channel(scores)
        labels = torch.zeros(scores.shape[1:], dtype=torch.int64, device=scores.device)
        best = torch.full(scores.shape[1:], -torch.inf, device=scores.device)
        limits = [0.0] * len(scores) if thresholds is None else thresholds
        for volume, limit, written in zip(scores, limits, self.written, strict=True):
            inside = (volume > limit) & (volume > best)
            labels.masked_fill_(inside, written)
            if self.disjoint:  # the larger decides; of nested regions the later
                best = torch.where(inside, volume, best)
        return labels

    def annotated(self, labels: Sequence[int] | None) -> list[bool]:
        """Which channels are annotated in a case with these annotated label indices (None: all)."""
        if labels is None:
            return [True] * len(self.names)
        annotated = {0, *labels}
        return [set(group) <= annotated for group in self.members]


@lru_cache(maxsize=64)
def _members_of_labels(members: tuple[tuple[int, ...], ...], labels: int, device: torch.device) -> torch.Tensor:
    """(labels, channels) of 1 where the label is in the channel; made once, because a GPU waits for each copy."""
    table = torch.zeros((labels, len(members)))
    for channel, group in enumerate(members):
        table[list(group), channel] = 1.0
    return table.to(device)


def largest_channel(scores: torch.Tensor) -> torch.Tensor:
    """``scores.argmax(0)`` of finite scores (C, ...), as uint8 for up to 255 channels, else int16, many times faster.

    torch computes the maxima at memory speed, but their indices one column at a time. So the maxima are computed first,
    then compared with each channel; among equal channels the first one wins, as in ``argmax`` on the CPU.
    """
    count = len(scores)
    kind = torch.uint8 if count <= 255 else torch.int16
    if count == 1:
        return torch.zeros(scores.shape[1:], dtype=kind, device=scores.device)
    if count == 2:
        return (scores[1] > scores[0]).to(kind)
    ranks = torch.arange(count, 0, -1, device=scores.device).to(kind)  # the first channel has the highest rank
    hits = (scores == scores.amax(0)).to(kind)
    hits *= ranks.reshape(-1, *[1] * (scores.ndim - 1))
    return count - hits.amax(0)


def class_weights(output_channels: OutputChannels, weights: Mapping[str, float] | None) -> list[float] | None:
    """One weight a channel from weights by name; channels that are not named weigh 1."""
    if not weights:
        return None
    if unknown := [name for name in weights if name not in output_channels.names]:
        names = ", ".join(output_channels.names)
        raise ConfigError(f"class weight for {unknown[0]!r}: no such class. Classes: {names}.")
    return [float(weights.get(name, 1.0)) for name in output_channels.names]


def _refuse_lossy_order(
    labels: Sequence[str], regions: Sequence[str], members: Sequence[Sequence[int]], written: Sequence[int]
) -> None:
    for number, name in enumerate(labels):
        last_first = zip(reversed(members), reversed(written), strict=True)
        found = next((value for group, value in last_first if number in group), 0)
        if found != number:
            raise ConfigError(
                f"Label {name!r} would become {labels[found]!r} on its way through the regions {', '.join(regions)}. "
                f"Order the regions from large to small, each writing a label that is in no later region."
            )
