"""HRVMamba as published: parallel branches that keep the resolution, made of DVSS blocks (``planned/hrvmamba.py``).

Source: Zhang et al. 2024, HRVMamba (arXiv:2410.03174); HRNet (arXiv:1908.07919) for the branches and their fusion.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.maps import channels_first, channels_last, per_axis
from medmamba.networks.blocks.residual import rising_rates
from medmamba.networks.planned.hrvmamba import DSS, DVSSBlock

MODULES = (1, 4, 2)  # fusion modules of the stages with 2, 3 and 4 branches
STEM, EXPANSION = 64, 4


def conv_norm(in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias and batch norm, as a list to put into a sequence."""
    convolution = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width)]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut; the output is four times as wide as the middle."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.conv1, self.bn1 = conv_norm(in_width, width, 1)
        self.conv2, self.bn2 = conv_norm(width, width, 3)
        self.conv3, self.bn3 = conv_norm(width, out, 1)
        self.downsample = nn.Sequential(*conv_norm(in_width, out, 1)) if in_width != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class HRModule(nn.Module):
    """Blocks on every branch, then every branch receives the sum of all, brought to its resolution and width."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*branch) for branch in blocks)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fusion(widths, i, j) for j in range(len(widths))) for i in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        # (B, c_i, h_i, w_i) each
        maps = [channels_first(branch(channels_last(x))) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            total = maps[i]
            for j, (step, x) in enumerate(zip(row, maps, strict=True)):  # type: ignore[call-overload]
                if j < i:
                    total = total + step(x)
                elif j > i:
                    total = total + F.interpolate(step(x), size=maps[i].shape[2:], mode="bilinear", align_corners=False)
            fused.append(F.relu(total))
        return fused


def _fusion(widths: Sequence[int], to: int, source: int) -> nn.Module:
    """From branch ``source`` to branch ``to``: 1x1 if it is coarser (upsampled after), strided steps if it is finer."""
    if source == to:
        return nn.Identity()
    if source > to:
        return nn.Sequential(*conv_norm(widths[source], widths[to], 1))
    width, steps = widths[source], []
    for stage in range(source + 1, to + 1):
        halve = conv_norm(width, width, 3, 2, groups=width)
        change = conv_norm(width, widths[to], 1) if stage == to else [*conv_norm(width, width, 1), nn.ReLU()]
        steps.append(nn.Sequential(*halve, *change))
    return nn.Sequential(*steps)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, *S) map."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(x)))


class PublishedHRVMamba(nn.Module):
    """(B, in, H, W), sides divisible by 32, to four maps (B, c * 2^i, H / 2^(i+2), W / 2^(i+2)).

    Args:
        stage1_width, bottlenecks: middle width and number of the bottlenecks at stride 4.
        width: c; or the widths of the four branches, if they do not double.
        modules, blocks: fusion modules per stage; blocks per branch and module, one number or one per stage.
        output_norms: a channel LayerNorm on each output, as dense heads expect.
    """

    def __init__(
        self,
        in_channels: int = 3,
        stage1_width: int = 64,
        width: int | Sequence[int] = 32,
        *,
        se_lpu: bool = False,
        bottlenecks: int = 2,
        modules: Sequence[int] = MODULES,
        blocks: int | Sequence[int] = 2,
        mlp_ratio: float = 2.0,
        mixer: Callable[[int], nn.Module] | None = None,
        drop_path: float = 0.0,
        output_norms: bool = True,
    ) -> None:
        super().__init__()
        depths = per_axis(blocks, len(modules))
        rates = iter(rising_rates(drop_path, sum(d * m for d, m in zip(depths, modules, strict=True))))
        mixer = mixer or (lambda c: DSS(c, squeeze_excite=se_lpu))

        def block(c: int, rate: float) -> nn.Module:
            return DVSSBlock(c, mixer(c), mlp_ratio=mlp_ratio, se_lpu=se_lpu, drop_path=rate)

        self.conv1, self.bn1 = conv_norm(in_channels, STEM, 3, 2)
        self.conv2, self.bn2 = conv_norm(STEM, STEM, 3, 2)
        layer1_out = EXPANSION * stage1_width
        self.layer1 = nn.Sequential(*(Bottleneck(layer1_out if i else STEM, stage1_width) for i in range(bottlenecks)))
        widths = [width * 2**i for i in range(4)] if isinstance(width, int) else list(width)
        before = [layer1_out]
        for stage in range(2, 5):
            after = widths[:stage]
            self.add_module(f"transition{stage - 1}", _transition(before, after))
            stack = []
            for _ in range(modules[stage - 2]):
                shared = [next(rates) for _ in range(depths[stage - 2])]  # by the branches
                stack.append(HRModule(after, [[block(c, rate) for rate in shared] for c in after]))
            self.add_module(f"stage{stage}", nn.Sequential(*stack))
            before = after
        for i, c in enumerate(widths):
            self.add_module(f"outnorm{i}", ChannelNorm(c) if output_norms else nn.Identity())

    def forward(self, image: Tensor) -> list[Tensor]:
        if any(n % 32 for n in image.shape[2:]):
            nearest = tuple(max(32, round(n / 32) * 32) for n in image.shape[2:])
            raise ConfigError(
                f"The published HRVMamba needs sides divisible by 32, got {tuple(image.shape[2:])}; use {nearest}."
            )
        x = F.relu(self.bn1(self.conv1(image)))
        x = F.relu(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]
        for stage in range(2, 5):
            transition = self.get_submodule(f"transition{stage - 1}")
            maps = [step(maps[min(i, len(maps) - 1)]) for i, step in enumerate(transition.children())]
            maps = self.get_submodule(f"stage{stage}")(maps)
        return [self.get_submodule(f"outnorm{i}")(x) for i, x in enumerate(maps)]


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """To one branch more: a convolution where the width changes; the new branch halves the last one."""
    steps: list[nn.Module] = []
    for i, width in enumerate(after):
        if i >= len(before):
            steps.append(nn.Sequential(nn.Sequential(*conv_norm(before[-1], width, 3, 2), nn.ReLU())))
        elif before[i] != width:
            steps.append(nn.Sequential(*conv_norm(before[i], width, 3), nn.ReLU()))
        else:
            steps.append(nn.Identity())
    return nn.ModuleList(steps)
