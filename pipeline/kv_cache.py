"""The key/value cache: executes a `ContextPlan` for all layers, once a block.

Keys are kept unrotated; `begin` rotates those a block attends to, at the plan's positions, into the context's
buffer. The block's forwards then only write their own frames into it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch

from pipeline.bank.bank import Bank, TransferStats
from pipeline.bias import find_bias
from pipeline.context import ENCODED, MERGED, OWN_INDEX, RETRIEVED, ContextPlan, ContextPolicy, Piece
from pipeline.context_buffer import ContextBuffer, Placed
from pipeline.frames import FrameShape, Staged, pooled
from pipeline.merged import MergedMemory, Tokens
from pipeline.merges import find_rule, merged_bytes
from utils.streams import Mark, SideStream
from wan.kernels import take_own
from wan.model import Attended
from wan.rope import Table, rotate


class Cache(Protocol):
    """What a generation asks of its cache, beside `wan.model.Context`."""

    @property
    def tier_bytes(self) -> dict[str, int]:
        """What the frames outside the window take, by tier."""

    def available(self, frames: range) -> list[int]:
        """Those of the frames whose keys and values can still be had, in order."""

    def prefetch(self, retrieved: Sequence[Sequence[int]]) -> None:
        """Start fetching the frames that the next plan retrieves for each sample."""

    def begin(self, plan: ContextPlan) -> None:
        """Assemble a block's context; its forwards leave no trace."""

    def commit(self, plan: ContextPlan) -> None:
        """Assemble the context of the next forward, which leaves the block's keys and values for later blocks."""

    def pin(self, frames: Sequence[int]) -> None:
        """Keep these frames for ever, in place of the video's first ones; what they hold is committed next."""

    def pop_transfers(self) -> TransferStats:
        """What moved into and out of the bank since this was last asked."""


class KVCache:
    """Keys and values of one generation; implements `Cache` and `wan.model.Context`.

    Args:
        shape: of a frame's keys and values.
        policy: whose plans will be executed; it says how much room they take.
        bank: receives the frames that are not at hand any more; None drops them.
    """

    def __init__(
        self,
        shape: FrameShape,
        policy: ContextPolicy,
        bank: Bank | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.bank = shape, bank
        self.pins = {frame: frame for frame in range(policy.pinned)}  # frame -> its place in `pinned`

        def empty(*leading: int) -> torch.Tensor:
            return torch.empty(*leading, shape.heads, shape.head_dim, device=device, dtype=dtype)

        self.ring = empty(ring_frames(policy), *shape.dims[:-2])  # the latest frames
        self.pinned = empty(policy.pinned, *shape.dims[:-2])
        self.encoded = empty(policy.encoded_frames, *shape.dims[:-2])  # beside the others, see `ENCODED`
        self.staged = Staged(shape, policy.fetched if bank is not None else (), device, dtype)
        rule = find_rule(policy, shape)
        self.merged = MergedMemory(rule, shape.layers) if rule is not None else None
        self.bias = find_bias(policy, shape)
        self.step = -1  # of denoising, in the present block
        self.merged_at: dict[int, Piece] = {}  # offset in tokens -> the merged piece there
        self.unwritten: set[int] = set()  # layers whose merged pieces are not in the context yet
        self.context = ContextBuffer(shape, policy.largest, device, dtype)
        self.versions: dict[int, int] = {}  # frame -> how often it was committed
        self.end = 0  # first frame after the current block
        self.start = self.stop = 0  # the block's own tokens in the context
        self.assembled: ContextPlan | None = None
        self.own_table: Table | None = None  # rotation of the block's own tokens
        self.committing = False
        self.kept: list[tuple[torch.Tensor, int]] = []  # frames that the forwards write, and their first own token
        self.side = SideStream(device, "fetch")
        self.store = SideStream(device, "store")
        self.before_commit: Mark | None = None  # the moment before the last commit's forward

    @staticmethod
    def nbytes_of(shape: FrameShape, policy: ContextPolicy, dtype: torch.dtype) -> int:
        """Bytes of the buffers that a cache makes at once."""
        size = shape.nbytes(dtype) * (ring_frames(policy) + policy.pinned + policy.encoded_frames)
        size += merged_bytes(policy, shape, dtype)
        return size + sum(shape.nbytes(dtype, pool) for pool in (*policy.fetched, *policy.largest))

    @property
    def tier_bytes(self) -> dict[str, int]:
        return self.bank.tier_bytes if self.bank is not None else {}

    def available(self, frames: range) -> list[int]:
        recent = max(self.end - len(self.ring), frames.start)
        older = range(frames.start, min(recent, frames.stop))
        banked = self.bank.available(older) if self.bank is not None else []
        return [*banked, *range(recent, frames.stop)]

    def prefetch(self, retrieved: Sequence[Sequence[int]]) -> None:
        """Start fetching the frames that the next plan retrieves for each sample.

        Frames that the last plan retrieved too stay where they are. Call it as soon as the frames
        are known: the copies run beside the forward that commits the block.
        """
        newest = max((frame for frames in retrieved for frame in frames), default=-1)
        is_old = self.before_commit is not None and newest < self.assembled.start
        with self.side.after(self.before_commit) if is_old else self.side.after_now():
            for sample, frames in enumerate(retrieved):
                self._stage(sample, [Piece(RETRIEVED, frame, 0) for frame in frames])

    def _prefetch_of(self, plan: ContextPlan) -> None:
        """Fetch what is retrieved and not there yet, before frames that come to a full bank put it out."""
        with self.side.after_now():
            for sample, row in enumerate(self._rows(plan)):
                self._stage(sample, [piece for piece in row if piece.role == RETRIEVED])

    def begin(self, plan: ContextPlan) -> None:
        """Make room for the plan's own frames and assemble the frames they attend to.

        A sample's retrieved frames lie in the order of their arrival, which attention does not depend on. What is
        in its place at its position already is not written again.
        """
        self.committing = False
        self.kept = []
        self.step = -1
        self._prefetch_of(plan)
        self.side.join()
        is_new = plan.start >= self.end
        if is_new:
            self._retire(plan)
        if self.merged is not None:
            self.merged.begin(plan.leaving, is_new)
        self._assemble(plan)

    def commit(self, plan: ContextPlan) -> None:
        self.store.join()  # the frames that left are still read where the new ones will be written
        self.side.join()  # and so may frames be that are made again
        if plan != self.assembled:
            self._assemble(plan)
        self.committing = True
        self._keep(plan.own)
        if self.merged is not None and plan.start == self.end - len(plan.own):  # not where older frames are made again
            self.merged.commit()
        for piece in plan.own:
            self.versions[piece.frame] = self.versions.get(piece.frame, 0) + 1
        self.before_commit = self.side.mark()

    def pop_transfers(self) -> TransferStats:
        return self.bank.pop_transfers() if self.bank is not None else TransferStats()

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """Write this forward's own keys and values; see `wan.model.Context`."""
        rotated_q = take_own(q, k, v, self.own_table, self.context.kv, self.kept, layer, self.start)
        if self.merged is not None:
            self._update_merged(layer, q, rotated_q)
        keys, values = self.context.layer(layer)
        bias = self._bias(layer) if self.bias is not None else None
        return Attended(rotated_q, keys[:, : self.stop], values[:, : self.stop], bias)

    def capturable(self) -> tuple[int, int] | None:
        """Where the block's own tokens and their rotations lie, if the next forwards differ in numbers alone.

        None where they do not: before the window is full, where a forward is kept, where pieces are merged or biased.
        """
        if self.committing or self.merged is not None or self.bias is not None:
            return None
        if self.stop < self.context.room:
            return None
        return self.start, self.own_table.data_ptr()

    def _bias(self, layer: int) -> torch.Tensor | None:
        """What is added to the logits of this forward."""
        if layer == 0 and not self.committing:
            self.step += 1
        return self.bias.at(layer, None if self.committing else self.step, self.ring.device)

    def _update_merged(self, layer: int, q: torch.Tensor, rotated_q: torch.Tensor) -> None:
        """Make a layer's merged pieces where that is due, and write them into the context where they are others."""
        changed = self.merged.update(layer, q, rotated_q, self.committing, partial(self._tokens, layer))
        if not changed and layer not in self.unwritten:
            return
        self.unwritten.discard(layer)
        tokens, size = self.merged.current[layer], self.shape.tokens()
        for offset, piece in self.merged_at.items():
            first = size * (-1 - piece.frame)
            part = tokens.part(first, first + size)
            keys = part.keys
            if piece.position != OWN_INDEX:
                keys = rotate(keys, self.context.table(piece.position, 1))
            self.context.write(layer, offset, keys, part.values)

    def _tokens(self, layer: int, frames: Sequence[int]) -> Tokens:
        """A layer's tokens of frames at hand; those of the pinned frames where none are named."""
        frames = list(frames) or list(self.pins)
        if not frames:
            return self._tokens(layer, [self.end - 1]).part(0, 0)
        keys, values = [], []
        for frame in frames:
            kv = self._whole(frame, slice(None))[:, :, layer]  # [B, 2, tokens, heads, head_dim]
            key = kv[:, 0]
            if self.merged.rule.at_own_index:
                key = rotate(key, self.context.table(frame, 1))
            keys.append(key)
            values.append(kv[:, 1])
        return Tokens.of(frames, torch.cat(keys, dim=1), torch.cat(values, dim=1))

    def _keep(self, own: Sequence[Piece]) -> None:
        """Let the next forwards leave unrotated keys and values of these pieces where later blocks read them."""
        self.kept = []
        for number, piece in enumerate(own):
            first = number * self.shape.tokens()
            if piece.role == ENCODED:
                self.kept.append((self.encoded[piece.frame % len(self.encoded)], first))
                continue
            if piece.frame in self.pins:
                self.kept.append((self.pinned[self.pins[piece.frame]], first))
            if piece.frame >= self.end - len(self.ring):
                self.kept.append((self.ring[piece.frame % len(self.ring)], first))

    def pin(self, frames: Sequence[int]) -> None:
        self.pins = {frame: place for place, frame in enumerate(frames)}

    def _assemble(self, plan: ContextPlan) -> None:
        rows = [self._arranged(sample, row) for sample, row in enumerate(self._rows(plan))]
        offset = 0
        self.merged_at = {}
        for pieces in zip(*rows, strict=True):  # what the samples have at one place
            first = pieces[0]
            assert all(piece.pool == first.pool for piece in pieces), "samples attend to equally many tokens"
            if first.role == MERGED:
                self._open_merged(offset, first)
            elif len(set(pieces)) == 1 and not self._is_staged(first):
                self._place(offset, first, range(self.shape.batch))
            else:
                for sample, piece in enumerate(pieces):
                    self._place(offset, piece, range(sample, sample + 1))
            offset += self.shape.tokens(first.pool)
        self.assembled, self.start = plan, offset
        self._open_own(plan.own)
        if self.bias is not None:
            self.bias.begin([[*row, *plan.own] for row in rows])

    def _open_merged(self, offset: int, piece: Piece) -> None:
        """Keep an offset free for a merged piece; each layer writes it in its next forward."""
        self.merged_at[offset] = piece
        self.unwritten = set(range(self.shape.layers))
        for sample in range(self.shape.batch):
            self.context.displace(sample, offset, offset + self.shape.tokens())

    def _open_own(self, own: tuple[Piece, ...]) -> None:
        """Give the block's own pieces the rest of the context; the forwards write there."""
        self.stop = self.start
        tables = []
        for piece in own:
            self.stop += self.shape.tokens(piece.pool)
            tables.append(self.context.table(piece.position, piece.pool))
        table = torch.cat(tables)
        if self.own_table is not None and self.own_table.shape == table.shape:
            self.own_table.copy_(table)  # a forward that is replayed reads it where it lies
        else:
            self.own_table = table
        for sample in range(self.shape.batch):
            self.context.displace(sample, self.start, self.stop)

    def _rows(self, plan: ContextPlan) -> tuple[tuple[Piece, ...], ...]:
        """The plan's past, a row for each sample."""
        return plan.past if len(plan.past) == self.shape.batch else plan.past * self.shape.batch

    def _arranged(self, sample: int, row: tuple[Piece, ...]) -> list[Piece]:
        """The row with its staged pieces in the order of their slots, so that those that stay need not move."""
        staged = [piece for piece in row if self._is_staged(piece)]
        if not staged:
            return list(row)
        self._stage(sample, staged)
        in_order = iter(sorted(staged, key=lambda piece: self.staged.slot(sample, self._key(piece))))
        return [next(in_order) if self._is_staged(piece) else piece for piece in row]

    def _place(self, offset: int, piece: Piece, samples: range) -> None:
        """Let a piece lie at an offset of the context."""
        version = self.versions.get(piece.frame, 0)
        what = Placed(piece.frame, piece.position, piece.pool, version, piece.role == ENCODED)
        self.context.place(offset, what, samples, partial(self._source, piece, slice(samples.start, samples.stop)))

    def _source(self, piece: Piece, samples: slice) -> torch.Tensor:
        """A piece's unrotated keys and values [B, 2, layers, tokens, heads, head_dim]."""
        if self._is_staged(piece):
            return self.staged.read(samples.start, self._key(piece))
        if piece.role == ENCODED:
            return self.encoded[piece.frame % len(self.encoded), samples]
        kv = self._whole(piece.frame, samples)
        return kv if piece.pool == 1 else pooled(kv, piece.pool, self.shape)

    def _whole(self, frame: int, samples: slice) -> torch.Tensor:
        """All tokens of a frame that is pinned or recent."""
        if frame in self.pins:
            return self.pinned[self.pins[frame], samples]
        return self.ring[frame % len(self.ring), samples]

    def _is_staged(self, piece: Piece) -> bool:
        """Whether a piece has a place of its own on the device because its frame may not be at hand."""
        if piece.role in (MERGED, ENCODED):
            return False
        return piece.role == RETRIEVED or not self._at_hand(piece.frame)

    def _at_hand(self, frame: int) -> bool:
        return frame in self.pins or frame >= self.end - len(self.ring)

    def _key(self, piece: Piece) -> tuple[int, int, int]:
        return piece.frame, piece.pool, self.versions.get(piece.frame, 0)

    def _stage(self, sample: int, pieces: Sequence[Piece]) -> None:
        """Fetch the pieces that are not there yet; those not named give their slots up."""
        for key, slot in self.staged.assign(sample, [self._key(piece) for piece in pieces]):
            frame, pool, _ = key
            out = self.staged.buffers[slot][sample]
            if pool == 1:
                self._fetch(frame, sample, out)
            else:
                whole = torch.empty(self.shape.dims[1:], dtype=out.dtype, device=out.device)
                self._fetch(frame, sample, whole)
                out.copy_(pooled(whole.unsqueeze(0), pool, self.shape)[0])

    def _fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        if self._at_hand(frame):
            out.copy_(self._whole(frame, slice(sample, sample + 1))[0])
        else:
            self.store.join()  # it may have left just now
            self.bank.fetch(frame, sample, out)

    def _retire(self, plan: ContextPlan) -> None:
        """Before a new block overwrites its part of the ring: hand the oldest frames to the bank.

        They are copied beside the forwards; only `commit` writes where they lie.
        """
        block = len(plan.own)
        self.end = plan.start + block
        if self.bank is None:
            return
        oldest = plan.start - len(self.ring)
        with self.store.after_now():
            for frame in range(max(oldest, 0), oldest + block):
                if frame not in self.pins:
                    place = frame % len(self.ring)
                    self.bank.put([frame], self.ring[place : place + 1])


def ring_frames(policy: ContextPolicy) -> int:
    """Latest frames kept at hand: whole blocks, so that a block's frames lie side by side in the ring."""
    return -(-policy.recent // policy.block) * policy.block
