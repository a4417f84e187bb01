"""Three-axis rotary position embedding of Wan: time, height, width (Su et al., arXiv 2104.09864)."""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat

Table = tuple[torch.Tensor, torch.Tensor]  # cos and sin, each [T, 1, head_dim / 2] in float32


def rope_table(
    frames: Sequence[int], height: int, width: int, head_dim: int, device: torch.device | str = "cpu"
) -> Table:
    """Cosines and sines for the tokens of latent frames at the given temporal positions.

    Args:
        frames: temporal position of each latent frame, any integers, any order.
        height, width: the frame's size in tokens.
        head_dim: channels of a head; 2 * (head_dim // 6) go to height and to width, the rest to time.

    Returns:
        cos, sin, each [len(frames) * height * width, 1, head_dim / 2]
    """
    side = 2 * (head_dim // 6)
    time = _angles(frames, head_dim - 2 * side, device)
    rows = _angles(range(height), side, device)
    cols = _angles(range(width), side, device)
    angles = torch.cat(
        [
            repeat(time, "f d -> (f h w) d", h=height, w=width),
            repeat(rows, "h d -> (f h w) d", f=len(frames), w=width),
            repeat(cols, "w d -> (f h w) d", f=len(frames), h=height),
        ],
        dim=-1,
    )
    angles = rearrange(angles, "t d -> t 1 d")
    return angles.cos().float(), angles.sin().float()


def rotate(x: torch.Tensor, table: Table) -> torch.Tensor:
    """Rotate channel pairs (2i, 2i + 1) of `x` [..., T, heads, head_dim] by the table's angles.

    The table's leading dimensions broadcast against those of `x`.
    """
    cos, sin = table
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


def _angles(
    positions: Sequence[int], channels: int, device: torch.device | str, theta: float = 10000.0
) -> torch.Tensor:
    """[len(positions), channels / 2] angles in float64: position * theta^(-2i / channels)."""
    position = torch.tensor(list(positions), dtype=torch.float64, device=device)
    exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels
    return torch.outer(position, theta**-exponent)
