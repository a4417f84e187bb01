"""The key/value cache: executes a `ContextPlan` for all layers, once a block.

Keys are kept unrotated; `begin` rotates those a block attends to, at the plan's positions, into
one preallocated buffer laid out as [sink | memory | local | own]. The block's forwards then only
write their own frames into it.
"""

import torch
from einops import rearrange

from pipeline.context import ContextPlan, ContextPolicy
from pipeline.memory import FrameMemory
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

        # Whole blocks, so that a block's slots in the ring are contiguous.
        ring_blocks = -(-policy.local_frames // layout.block)
        shape = (batch, 2, params.num_layers)
        self.ring = empty(ring_blocks * layout.block, *shape, self.tokens)
        self.sink = empty(layout.sink, *shape, self.tokens)
        self.fetched = empty(batch, layout.memory if memory is not None else 0, 2, params.num_layers, self.tokens)
        self.context = empty(2, params.num_layers, batch, layout.window * self.tokens)
        self.plan: ContextPlan | None = None
        self.table: Table | None = None  # rotation of the block's own tokens

    @staticmethod
    def frame_bytes(params: WanParams, height: int, width: int, batch: int, dtype: torch.dtype) -> int:
        """Bytes of one latent frame's keys and values in all layers."""
        return 2 * params.num_layers * batch * params.tokens_per_frame(height, width) * params.dim * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the preallocated buffers."""
        return sum(buffer.nbytes for buffer in (self.ring, self.sink, self.fetched, self.context))

    def begin(self, plan: ContextPlan) -> None:
        """Make room for the plan's own frames and assemble the frames they attend to."""
        self.plan = plan
        self._retire(plan.own)
        table = rope_table(plan.positions, *self.grid, self.head_dim, self.context.device)
        if plan.memory and plan.memory[0]:
            self.memory.fetch(plan.memory, self.fetched)
        slot = 0
        for frame in plan.sink:
            slot = self._place(slot, self.sink[frame], table)
        for index in range(len(plan.memory[0]) if plan.memory else 0):
            slot = self._place(slot, self.fetched[:, index], table)
        for frame in plan.local:
            slot = self._place(slot, self.ring[frame % len(self.ring)], table)
        self.start = slot * self.tokens
        self.stop = self.start + len(plan.own) * self.tokens
        self.slots = slice(plan.own[0] % len(self.ring), plan.own[0] % len(self.ring) + len(plan.own))
        self.table = tuple(part[self.start : self.stop] for part in table)

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

    def _place(self, slot: int, kv: torch.Tensor, table: Table) -> int:
        """Rotate a frame's keys [B, 2, layers, tokens, heads, head_dim] into `slot` of the context."""
        span = slice(slot * self.tokens, (slot + 1) * self.tokens)
        keys, values = rearrange(kv, "b two l n h d -> two l b n h d")
        self.context[0, :, :, span] = rotate(keys, tuple(part[span] for part in table))
        self.context[1, :, :, span] = values
        return slot + 1

    def _retire(self, own: tuple[int, ...]) -> None:
        """Before `own` overwrites its slots of the ring: keep the sink, hand the rest to the memory."""
        if own[0] == self.layout.block:  # the first block is finished, and with it the sink
            self.sink.copy_(self.ring[: self.layout.sink])
        leaving = [frame - len(self.ring) for frame in own]
        if self.memory is not None and leaving[0] >= 0:
            kept = [frame for frame in leaving if frame >= self.layout.sink]
            if kept:
                first = kept[0] % len(self.ring)
                self.memory.put(kept, self.ring[first : first + len(kept)])
