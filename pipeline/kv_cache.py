"""The key/value cache: executes a `ContextPlan` for all layers, once a block.

Keys are kept unrotated; `begin` rotates those a block attends to, at the plan's positions, into
one preallocated buffer laid out as [sink | memory | local | own]. The block's forwards then only
write their own frames into it.
"""

from collections.abc import Sequence

import torch
from einops import rearrange

from pipeline.context import ContextPlan, ContextPolicy
from pipeline.memory import FrameMemory
from utils.streams import SideStream
from wan.params import WanParams
from wan.rope import Table, rope_table, rotate


class KVCache:
    """Keys and values of one generation; implements `wan.model.Context`.

    Args:
        params: the transformer's sizes.
        policy: whose plans will be executed; its layout and `local_frames` size the buffers.
        height, width: the latent's size; every frame has the same.
        batch: samples generated together.
        memory: receives the frames that no plan can name as local any more; None drops them.
    """

    def __init__(
        self,
        params: WanParams,
        policy: ContextPolicy,
        height: int,
        width: int,
        batch: int = 1,
        memory: FrameMemory | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        layout = policy.layout
        _, ph, pw = params.patch_size
        self.layout, self.memory, self.head_dim = layout, memory, params.head_dim
        self.grid = (height // ph, width // pw)
        self.tokens = self.grid[0] * self.grid[1]

        def empty(*leading: int) -> torch.Tensor:
            return torch.empty(*leading, params.num_heads, params.head_dim, device=device, dtype=dtype)

        frame = (batch, 2, params.num_layers, self.tokens)
        self.ring = empty(ring_frames(policy), *frame)
        self.sink = empty(layout.sink, *frame)
        self.fetched = empty(layout.memory if memory is not None else 0, *frame)
        self.context = empty(2, params.num_layers, batch, layout.window * self.tokens)
        self.placed: dict[tuple[int, int], tuple[int, int]] = {}  # (context slot, sample) -> (frame, position) there
        self.recalled: list[list[int | None]] = [[None] * layout.memory for _ in range(batch)]  # frames in `fetched`
        self.end = 0  # first frame after the current block
        self.side = SideStream(device, "fetch")
        self.table: Table | None = None  # rotation of the block's own tokens

    @staticmethod
    def frame_bytes(params: WanParams, height: int, width: int, batch: int, dtype: torch.dtype) -> int:
        """Bytes of one latent frame's keys and values in all layers."""
        return 2 * params.num_layers * batch * params.tokens_per_frame(height, width) * params.dim * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the preallocated buffers."""
        return sum(buffer.nbytes for buffer in (self.ring, self.sink, self.fetched, self.context))

    def held(self, frames: range) -> list[int]:
        """Those of the frames whose keys and values can still be had, in order."""
        recent = max(self.end - len(self.ring), frames.start)
        stored = range(frames.start, min(recent, frames.stop))
        return [*(self.memory.held_of(stored) if self.memory is not None else ()), *range(recent, frames.stop)]

    def recall(self, memory: Sequence[Sequence[int]]) -> None:
        """Start fetching the frames that the next plan retrieves for each sample.

        Frames that the last plan retrieved too stay where they are. Call it as soon as the frames
        are known: the copies run beside the forwards that are queued after it.
        """
        with self.side.after_now():
            for sample, frames in enumerate(memory):
                slots = self.recalled[sample]
                slots[:] = [
                    frame if frame in frames and slot < len(frames) else None for slot, frame in enumerate(slots)
                ]
                for frame in frames:
                    if frame not in slots:
                        slot = slots.index(None)
                        slots[slot] = frame
                        self._fetch(frame, sample, self.fetched[slot, sample])

    def begin(self, plan: ContextPlan) -> None:
        """Make room for the plan's own frames and assemble the frames they attend to.

        A sample's retrieved frames follow the sink in the order of their arrival, which attention
        does not depend on. What is in its slot at its position already is not written again.
        """
        if any(set(frames) != set(slots[: len(frames)]) for frames, slots in zip(plan.memory, self.recalled)):  # noqa: B905
            self.recall(plan.memory)
        self.side.join()
        self._retire(plan.own)
        table = rope_table(plan.positions, *self.grid, self.head_dim, self.context.device)
        everyone, first = range(self.context.shape[2]), len(plan.sink)
        for slot, frame in enumerate(plan.sink):
            self._place(slot, slot, frame, self.sink[frame], everyone, plan, table)
        for sample, frames in enumerate(plan.memory):
            for index, frame in enumerate(frames):
                slot = self.recalled[sample].index(frame)
                kv = self.fetched[slot, sample : sample + 1]
                self._place(first + slot, first + index, frame, kv, range(sample, sample + 1), plan, table)
        for slot, frame in enumerate(plan.local, start=len(plan.positions) - len(plan.own) - len(plan.local)):
            self._place(slot, slot, frame, self.ring[frame % len(self.ring)], everyone, plan, table)
        for slot in range(len(plan.positions) - len(plan.own), len(plan.positions)):
            for sample in everyone:  # the forwards write here
                self.placed.pop((slot, sample), None)
        self.start = (len(plan.positions) - len(plan.own)) * self.tokens
        self.stop = len(plan.positions) * self.tokens
        self.slots = slice(plan.own[0] % len(self.ring), plan.own[0] % len(self.ring) + len(plan.own))
        self.table = tuple(part[self.start : self.stop] for part in table)

    @torch.compiler.disable  # its writes into the buffers are the graph's border
    def join(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Write this forward's own keys and values; see `wan.model.Context`.

        The last forward of a block, the one on its clean latents, leaves what later blocks read.
        """
        own = self.ring[self.slots, :, :, layer]  # [block, B, 2, tokens, heads, head_dim]
        own[:, :, 0] = rearrange(k, "b (f n) h d -> f b n h d", n=self.tokens)
        own[:, :, 1] = rearrange(v, "b (f n) h d -> f b n h d", n=self.tokens)
        keys, values = self.context[:, layer, :, : self.stop]
        keys[:, self.start :] = rotate(k, self.table)
        values[:, self.start :] = v
        return rotate(q, self.table), keys, values

    def _place(
        self,
        slot: int,
        index: int,
        frame: int,
        kv: torch.Tensor,
        samples: range,
        plan: ContextPlan,
        table: Table,
    ) -> None:
        """Write a frame [B, 2, layers, tokens, heads, head_dim], the plan's `index`-th, to a slot of the context."""
        wanted = (frame, plan.positions[index])
        if all(self.placed.get((slot, sample)) == wanted for sample in samples):
            return
        self.placed.update({(slot, sample): wanted for sample in samples})
        batch = slice(samples.start, samples.stop)
        span, angles = (slice(i * self.tokens, (i + 1) * self.tokens) for i in (slot, index))
        keys, values = rearrange(kv, "b two l n h d -> two l b n h d")
        self.context[0, :, batch, span] = rotate(keys, tuple(part[angles] for part in table))
        self.context[1, :, batch, span] = values

    def _fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        if frame >= self.end - len(self.ring):
            out.copy_(self.ring[frame % len(self.ring), sample])
        else:
            self.memory.fetch(frame, sample, out)

    def _retire(self, own: tuple[int, ...]) -> None:
        """Before `own` overwrites its slots of the ring: keep the sink, hand the rest to the memory."""
        self.end = own[-1] + 1
        if own[0] == self.layout.block:  # the first block is finished, and with it the sink
            self.sink.copy_(self.ring[: self.layout.sink])
        leaving = [frame - len(self.ring) for frame in own]
        if self.memory is not None and leaving[0] >= 0:
            kept = [frame for frame in leaving if frame >= self.layout.sink]
            if kept:
                first = kept[0] % len(self.ring)
                self.memory.put(kept, self.ring[first : first + len(kept)])


def ring_frames(policy: ContextPolicy) -> int:
    """Latest frames kept beside the context: whole blocks, so that a block's slots in the ring are contiguous."""
    return -(-policy.local_frames // policy.layout.block) * policy.layout.block
