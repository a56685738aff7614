"""Window attention in 2D and 3D: Swin's, on any grid.

Source: Liu et al. 2021, Swin Transformer (arXiv:2103.14030), sections 3.2 and 3.3. In a volume it is LinGen's TESA.

Sizes that the window does not divide are padded at the end; padded tokens form a region of their own, which nobody else
attends to. A window larger than the grid shrinks to it and is not shifted along that axis.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.patches import depth_to_space


class WindowAttention(nn.Module):
    """Multi-head self-attention of (B, *S, C) inside windows, with a learned bias per relative position.

    ``window`` has the edge per axis; ``shifted`` moves the windows by half their edge, as every second layer does.
    """

    def __init__(self, width: int, heads: int, window: Sequence[int], *, shifted: bool = False) -> None:
        super().__init__()
        if width % heads:
            fitting = [h for h in range(1, width + 1) if width % h == 0]
            nearest = min(fitting, key=lambda h: abs(h - heads))
            raise ConfigError(f"{width} channels do not divide among {heads} attention heads; {nearest} would fit.")
        self.heads, self.window, self.shifted = heads, tuple(window), shifted
        self.relative_position_bias_table = nn.Parameter(torch.zeros(prod(2 * w - 1 for w in window), heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        grid = tuple(x.shape[1:-1])
        window = tuple(min(w, n) for w, n in zip(self.window, grid, strict=True))
        shift = tuple(w // 2 if self.shifted and n > w else 0 for n, w in zip(grid, self.window, strict=True))
        padded = tuple(-(-n // w) * w for n, w in zip(grid, window, strict=True))
        axes = tuple(range(1, 1 + len(grid)))

        if padded != grid:
            x = F.pad(x, [0, 0, *(side for n, p in zip(grid[::-1], padded[::-1], strict=True) for side in (0, p - n))])
        if any(shift):
            x = torch.roll(x, tuple(-s for s in shift), axes)
        tokens = _to_windows(x, window)  # (B, windows, T, C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).movedim(-2, 2).unbind(-2)  # (B, windows, h, T, c)
        bias = self.relative_position_bias_table[_relative_index(self.window, window, str(x.device))]  # (T, T, h)
        mask = bias.movedim(-1, 0).to(q.dtype)  # (h, T, T)
        apart = _apart(grid, padded, window, shift, str(x.device))  # (windows, T, T)
        if apart is not None:
            mask = mask.masked_fill(apart[:, None], float("-inf"))
        # four axes, as fused kernels and ONNX want: windows that share the mask join the batch, others the heads
        joined = (0, 1) if apart is None else (1, 2)
        mask = mask if apart is None else mask.flatten(0, 1)
        shape = q.shape
        q, k, v = (part.flatten(*joined) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(shape)
        y = self.proj(y.movedim(2, -2).flatten(-2))
        whole = y.unflatten(1, tuple(p // w for p, w in zip(padded, window, strict=True)))  # (B, *S/window, T, C)
        y = depth_to_space(whole.flatten(-2), window)
        if any(shift):
            y = torch.roll(y, shift, axes)
        return y[(slice(None), *(slice(n) for n in grid))] if padded != grid else y


def _to_windows(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """(B, *S, C) to (B, windows, T, C), windows and tokens in row-major order."""
    dims = len(window)
    split = [size for n, w in zip(x.shape[1:-1], window, strict=True) for size in (n // w, w)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    outer, inner = range(1, 2 * dims, 2), range(2, 2 * dims + 1, 2)
    x = x.permute(0, *outer, *inner, 2 * dims + 1)
    return x.reshape(x.shape[0], prod(x.shape[1 : 1 + dims]), prod(window), x.shape[-1])


@lru_cache(maxsize=64)
def _relative_index(table: tuple[int, ...], window: tuple[int, ...], device: str) -> Tensor:
    """(T, T): row of the bias table for (query, key); the difference is query minus key, row-major over the axes."""
    position = np.indices(window).reshape(len(window), -1)
    index = np.zeros((position.shape[1],) * 2, dtype=np.int64)
    for axis, edge in enumerate(table):
        difference = position[axis][:, None] - position[axis][None, :]
        index = index * (2 * edge - 1) + difference + edge - 1
    return torch.from_numpy(index).to(device)


@lru_cache(maxsize=64)
def _apart(
    grid: tuple[int, ...], padded: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], device: str
) -> Tensor | None:
    """(windows, T, T): pairs that share a window only because the grid was rolled or padded; None if there are none."""
    if not any(shift) and padded == grid:
        return None
    region = np.zeros(padded, dtype=np.int64)
    for axis, (n, size, s) in enumerate(zip(grid, padded, shift, strict=True)):
        position = np.roll(np.arange(size), -s)
        part = np.where(position >= n, 2, np.where((np.arange(size) >= size - s) & (s > 0), 1, 0))
        region = region * 3 + part.reshape([-1 if a == axis else 1 for a in range(len(grid))])
    ids = _to_windows(torch.from_numpy(region)[None, ..., None], window)[0, ..., 0]  # (windows, T)
    return (ids[:, :, None] != ids[:, None, :]).to(device)
