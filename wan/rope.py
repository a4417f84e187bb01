"""Three-axis rotary position embedding of Wan: time, height, width (Su et al., arXiv 2104.09864)."""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat

Table = tuple[torch.Tensor, torch.Tensor]  # cos and sin, each [T, 1, head_dim / 2] in float32


def rope_table(
    frames: Sequence[int], height: int, width: int, head_dim: int, device: torch.device | str = "cpu", pool: int = 1
) -> Table:
    """Cosines and sines for the tokens of latent frames at the given temporal positions.

    Args:
        frames: temporal position of each latent frame, any integers, any order.
        height, width: the frame's size in tokens, before pooling.
        head_dim: channels of a head; 2 * (head_dim // 6) go to height and to width, the rest to time.
        pool: each token stands for the mean of pool x pool tokens, and sits in their middle.

    Returns:
        cos, sin, each [len(frames) * tokens of a frame, 1, head_dim / 2]
    """
    side = 2 * (head_dim // 6)
    rows, columns = middles(height, pool), middles(width, pool)
    f, h, w = len(frames), len(rows), len(columns)
    angles = torch.cat(
        [
            repeat(_angles(frames, head_dim - 2 * side, device), "f d -> (f h w) d", h=h, w=w),
            repeat(_angles(rows, side, device), "h d -> (f h w) d", f=f, w=w),
            repeat(_angles(columns, side, device), "w d -> (f h w) d", f=f, h=h),
        ],
        dim=-1,
    )
    angles = rearrange(angles, "t d -> t 1 d")
    return angles.cos().float(), angles.sin().float()


def middles(length: int, pool: int) -> list[float]:
    """Where the tokens of an axis sit when `pool` neighbours are one; the last ones may be fewer."""
    found = []
    for first in range(0, length, pool):
        last = min(first + pool, length) - 1
        found.append((first + last) / 2)
    return found


def rotate(x: torch.Tensor, table: Table) -> torch.Tensor:
    """Rotate channel pairs (2i, 2i + 1) of `x` [..., T, heads, head_dim] by the table's angles.

    The table's leading dimensions broadcast against those of `x`.
    """
    cos, sin = table
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


def _angles(
    positions: Sequence[float], channels: int, device: torch.device | str, theta: float = 10000.0
) -> torch.Tensor:
    """[len(positions), channels / 2] angles in float64: position * theta^(-2i / channels)."""
    position = torch.tensor(list(positions), dtype=torch.float64, device=device)
    exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels
    return torch.outer(position, theta**-exponent)
