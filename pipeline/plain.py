"""The plain way to serve a context: the oracle that the cache is tested against, and its baseline in benchmarks."""

from collections.abc import Sequence

import torch

from pipeline.bank.bank import TransferStats
from pipeline.context import ENCODED, ContextPlan, Piece
from pipeline.frames import FrameShape, pooled
from wan.model import Attended
from wan.rope import Table, rope_table, rotate


class PlainCache:
    """Keeps all keys and values on the host; each forward uploads, concatenates and rotates what it attends to.

    Implements `pipeline.kv_cache.Cache` and `wan.model.Context`.

    Args:
        shape: of a frame's keys and values.
        device: where the forwards run.
    """

    def __init__(self, shape: FrameShape, device: torch.device | str = "cpu") -> None:
        self.shape, self.device = shape, device
        self.frames: dict[tuple[int, int], torch.Tensor] = {}  # (layer, frame) -> [2, B, tokens, heads, head_dim]
        self.encoded: dict[tuple[int, int], torch.Tensor] = {}  # the same, of frames encoded once more
        self.tables: dict[tuple[int, int], Table] = {}  # (position, pool) -> rotation of a piece
        self.tier_bytes: dict[str, int] = {}

    def available(self, frames: range) -> list[int]:
        return [frame for frame in frames if (0, frame) in self.frames]

    def prefetch(self, retrieved: Sequence[Sequence[int]]) -> None:
        """Nothing is fetched ahead of time."""

    def begin(self, plan: ContextPlan) -> None:
        self.plan = plan

    def commit(self, plan: ContextPlan) -> None:
        self.plan = plan

    def pin(self, frames: Sequence[int]) -> None:
        """All frames are kept anyway."""

    def pop_transfers(self) -> TransferStats:
        return TransferStats()

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """See `wan.model.Context`; what every forward leaves is replaced by the next one's."""
        tokens = self.shape.tokens()
        for index, piece in enumerate(self.plan.own):
            own = slice(index * tokens, (index + 1) * tokens)
            frames = self.encoded if piece.role == ENCODED else self.frames
            frames[layer, piece.frame] = torch.stack([k[:, own], v[:, own]]).cpu()
        keys, values = [], []
        for sample in range(len(q)):
            parts = [self._piece(layer, piece, sample) for piece in self.plan.pieces(sample)]
            keys.append(torch.cat([part[0] for part in parts]))
            values.append(torch.cat([part[1] for part in parts]))
        queries = torch.cat([self._rotated(q_frame, piece) for q_frame, piece in self._own(q)], dim=1)
        return Attended(queries, torch.stack(keys), torch.stack(values))

    def _piece(self, layer: int, piece: Piece, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A piece's rotated keys and values, each [tokens, heads, head_dim]."""
        frames = self.encoded if piece.role == ENCODED else self.frames
        kv = frames[layer, piece.frame][:, sample].to(self.device)  # [2, tokens, heads, head_dim]
        if piece.pool > 1:
            kv = pooled(kv[None, :, None], piece.pool, self.shape)[0, :, 0]
        return self._rotated(kv[0], piece), kv[1]

    def _own(self, q: torch.Tensor) -> list[tuple[torch.Tensor, Piece]]:
        return list(zip(q.chunk(len(self.plan.own), dim=1), self.plan.own, strict=True))

    def _rotated(self, x: torch.Tensor, piece: Piece) -> torch.Tensor:
        shape, key = self.shape, (piece.position, piece.pool)
        if key not in self.tables:
            sizes = (shape.rows, shape.columns, shape.head_dim)
            self.tables[key] = rope_table([piece.position], *sizes, self.device, piece.pool)
        return rotate(x, self.tables[key])
