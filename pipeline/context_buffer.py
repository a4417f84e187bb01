"""The one buffer that attention reads: a context's pieces one after another, keys rotated to their places."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pipeline.frames import FrameShape
from wan.kernels import put
from wan.rope import Table, rope_table


class Placed(NamedTuple):
    """What lies at an offset of the context; a frame that is committed again has another version."""

    frame: int
    position: int
    pool: int
    version: int
    is_encoded: bool


class ContextBuffer:
    """Keys and values of a context for all layers, and what lies where in it.

    Attributes:
        kv: [2, layers, B, heads, tokens, head_dim]: each head's keys lie side by side, as attention reads them.
        room: tokens that it holds.
        written: bytes of whole pieces that were written into it so far.

    Args:
        pools: of the pieces of the largest context, see `Piece.pool`.
    """

    def __init__(self, shape: FrameShape, pools: Sequence[int], device: torch.device | str, dtype: torch.dtype) -> None:
        self.shape = shape
        self.room = sum(shape.tokens(pool) for pool in pools)
        dims = (2, shape.layers, shape.batch, shape.heads, self.room, shape.head_dim)
        self.kv = torch.empty(dims, device=device, dtype=dtype)
        self.written = 0
        self.placed: list[dict[int, Placed]] = [{} for _ in range(shape.batch)]  # of each sample, by offset in tokens
        self.tables: dict[tuple[int, int], Table] = {}  # (position, pool) -> rotation of a piece
        self.most_tables = 2 * len(pools)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, [B, tokens, heads, head_dim] each."""
        keys, values = self.kv[:, layer].transpose(2, 3)
        return keys, values

    def place(self, offset: int, what: Placed, samples: range, read: Callable[[], torch.Tensor]) -> None:
        """Write a piece's keys, rotated, and values for some samples, unless they are there already.

        Args:
            read: gives them unrotated, [samples, 2, layers, tokens, heads, head_dim].
        """
        if all(self.placed[sample].get(offset) == what for sample in samples):
            return
        span = slice(offset, offset + self.shape.tokens(what.pool))
        for sample in samples:
            self.displace(sample, span.start, span.stop)
            self.placed[sample][offset] = what
        table = self.table(what.position, what.pool)
        for sample, (k, v) in zip(samples, read(), strict=True):
            keys, values = self.kv[:, :, sample, :, span].transpose(2, 3)  # [layers, tokens, heads, head_dim] each
            put(k, v, table, keys, values)
            self.written += 2 * k.nbytes

    def write(self, layer: int, offset: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write one layer's tokens [B, tokens, heads, head_dim] as they are, at an offset that is free for them."""
        span = slice(offset, offset + keys.shape[1])
        room_keys, room_values = self.layer(layer)
        room_keys[:, span] = keys
        room_values[:, span] = values
        self.written += 2 * keys.nbytes

    def displace(self, sample: int, start: int, stop: int) -> None:
        """Forget what lay between two offsets, as it is written over."""
        placed = self.placed[sample]
        for offset, what in list(placed.items()):
            if offset < stop and offset + self.shape.tokens(what.pool) > start:
                del placed[offset]

    def table(self, position: int, pool: int) -> Table:
        """Rotation of a piece; the latest ones are kept, as most positions come again in the next block."""
        key = (position, pool)
        if key not in self.tables:
            if len(self.tables) == self.most_tables:
                del self.tables[next(iter(self.tables))]
            shape = self.shape
            self.tables[key] = rope_table([position], shape.rows, shape.columns, shape.head_dim, self.kv.device, pool)
        return self.tables[key]
