"""Three-axis rotary position embedding of Wan: time, height, width (Su et al., arXiv 2104.09864)."""

from collections.abc import Sequence

import torch

# Of each token and pair of channels cos + i sin of its angle, [T, 1, head_dim / 2] in complex64: a pair that is read
# as a complex number too is rotated by one product.
Table = torch.Tensor


def rope_table(
    frames: Sequence[int], height: int, width: int, head_dim: int, device: torch.device | str = "cpu", pool: int = 1
) -> Table:
    """Rotations of the tokens of latent frames at the given temporal positions.

    The few angles of each axis are made on the host; a GPU gets them without a wait.

    Args:
        frames: temporal position of each latent frame, any integers, any order.
        height, width: the frame's size in tokens, before pooling.
        head_dim: channels of a head; 2 * (head_dim // 6) go to height and to width, the rest to time.
        pool: each token stands for the mean of pool x pool tokens, and sits in their middle.

    Returns:
        [len(frames) * tokens of a frame, 1, head_dim / 2]
    """
    side = 2 * (head_dim // 6)
    axes = [
        _turns(frames, head_dim - 2 * side),
        _turns(middles(height, pool), side),
        _turns(middles(width, pool), side),
    ]
    sizes = [len(axis) for axis in axes]
    packed = torch.cat([axis.flatten() for axis in axes])
    if torch.device(device).type == "cuda":
        packed = packed.pin_memory()  # the copy runs beside the host
    packed = packed.to(device, non_blocking=True)
    table = torch.empty(*sizes, head_dim // 2, dtype=torch.complex64, device=device)
    first = channel = 0
    for place, axis in enumerate(axes):
        shape = [1, 1, 1, axis.shape[1]]
        shape[place] = len(axis)
        values = packed[first : first + axis.numel()].view(shape)
        table[..., channel : channel + axis.shape[1]] = values
        first += axis.numel()
        channel += axis.shape[1]
    return table.view(-1, 1, head_dim // 2)


def middles(length: int, pool: int) -> list[float]:
    """Where the tokens of an axis sit when `pool` neighbours are one; the last ones may be fewer."""
    found = []
    for first in range(0, length, pool):
        last = min(first + pool, length) - 1
        found.append((first + last) / 2)
    return found


def rotate(x: torch.Tensor, table: Table) -> torch.Tensor:
    """Rotate channel pairs (2i, 2i + 1) of `x` [..., T, heads, head_dim] by the table's angles, in float32.

    The table's leading dimensions broadcast against those of `x`.
    """
    return torch.view_as_real(pairs(x.float()) * table).flatten(-2).type_as(x)


def rotate_into(out: torch.Tensor, x: torch.Tensor, table: Table) -> None:
    """The same, written to `out`, a tensor of the shape of `x`."""
    if out.dtype == x.dtype == torch.float32:
        torch.mul(pairs(x), table, out=pairs(out))
    else:
        out.copy_(rotate(x, table))


def pairs(x: torch.Tensor) -> torch.Tensor:
    """Channel pairs of float32 numbers [..., 2n] as complex numbers [..., n], in the same memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _turns(positions: Sequence[float], channels: int, theta: float = 10000.0) -> torch.Tensor:
    """[len(positions), channels / 2] cos + i sin of the angles position * theta^(-2i / channels), in float64 first."""
    position = torch.tensor(list(positions), dtype=torch.float64)
    exponent = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    angles = torch.outer(position, theta**-exponent)
    return torch.complex(angles.cos().float(), angles.sin().float())
