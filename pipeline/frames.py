"""Keys and values of latent frames: their shape, their pooling, and a place for those that were fetched."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch.nn import functional as F

from wan.params import WanParams


@dataclass(frozen=True)
class FrameShape:
    """Keys and values of one latent frame: [batch, 2, layers, tokens, heads, head_dim].

    Attributes:
        rows, columns: the frame's size in tokens.
    """

    batch: int
    layers: int
    rows: int
    columns: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, params: WanParams, height: int, width: int, batch: int = 1, processes: int = 1) -> "FrameShape":
        """That of a transformer for latent frames of `height` x `width`.

        Args:
            processes: how many share the heads out among them; the shape is that of one's.
        """
        _, ph, pw = params.patch_size
        heads = params.num_heads // processes
        return cls(batch, params.num_layers, height // ph, width // pw, heads, params.head_dim)

    def tokens(self, pool: int = 1) -> int:
        """Tokens of a piece."""
        return -(-self.rows // pool) * -(-self.columns // pool)

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.batch, 2, self.layers, self.tokens(), self.heads, self.head_dim)

    def nbytes(self, dtype: torch.dtype, pool: int = 1) -> int:
        """Bytes of a piece for all samples."""
        return 2 * self.batch * self.layers * self.tokens(pool) * self.heads * self.head_dim * dtype.itemsize


class Staged:
    """Pieces fetched for each sample, keys unrotated; each stays in its slot for as long as it is wanted.

    Args:
        pools: `pool` of each slot.
    """

    def __init__(self, shape: FrameShape, pools: Sequence[int], device: torch.device | str, dtype: torch.dtype) -> None:
        self.pools = list(pools)
        self.buffers = []  # [B, 2, layers, tokens, heads, head_dim] each
        for pool in self.pools:
            dims = (shape.batch, 2, shape.layers, shape.tokens(pool), shape.heads, shape.head_dim)
            self.buffers.append(torch.empty(dims, device=device, dtype=dtype))
        self.keys: list[list[tuple | None]] = [[None] * len(self.pools) for _ in range(shape.batch)]

    def slot(self, sample: int, key: tuple) -> int:
        return self.keys[sample].index(key)

    def assign(self, sample: int, wanted: Sequence[tuple]) -> list[tuple[tuple, int]]:
        """Give every wanted key (frame, pool, version) a slot of its pool, the first ones.

        Returns:
            (key, slot) of those that are to be filled.
        """
        keys = self.keys[sample]
        room = {}
        for pool in set(self.pools):
            count = sum(key[1] == pool for key in wanted)
            room[pool] = [slot for slot, of in enumerate(self.pools) if of == pool][:count]
        for slot, pool in enumerate(self.pools):
            if keys[slot] not in wanted or slot not in room[pool]:
                keys[slot] = None
        missing = []
        for key in wanted:
            if key not in keys:
                slot = next(slot for slot in room[key[1]] if keys[slot] is None)
                keys[slot] = key
                missing.append((key, slot))
        return missing

    def read(self, sample: int, key: tuple) -> torch.Tensor:
        """[1, 2, layers, tokens, heads, head_dim]"""
        return self.buffers[self.slot(sample, key)][sample : sample + 1]


def pooled(kv: torch.Tensor, pool: int, shape: FrameShape) -> torch.Tensor:
    """Means over pool x pool neighbouring tokens of keys and values [B, 2, layers, tokens, heads, head_dim]."""
    batch = kv.shape[0]
    grid = rearrange(kv, "b two l (r c) h d -> (b two l) (h d) r c", r=shape.rows)
    means = F.avg_pool2d(grid.float(), pool, ceil_mode=True).to(kv.dtype)
    return rearrange(means, "(b two l) (h d) r c -> b two l (r c) h d", b=batch, two=2, h=shape.heads)
