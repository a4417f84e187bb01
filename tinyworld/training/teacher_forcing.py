"""Teacher forcing, exactly: many blocks in one forward, each in the context its plan names.

One forward runs all blocks of a clip, once with clean frames and `copies` times with noisy ones. At
each layer every block attends to clean frames' keys and values, which come from the clean run of
their own block, as they do from the key/value cache in a rollout, and to its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from torch.nn.functional import pad

from wan.model import Attended
from wan.rope import rope_table, rotate


@dataclass(frozen=True)
class BlockPlan:
    """What one block attends to.

    Attributes:
        context: per sample, indices into the sequence of the frames attended to, [B, context frames].
        positions: their temporal positions, then those of the block's own frames.
        strange: per sample, which of these frames are the next sample's, [B, context frames]; None: none of them.
    """

    context: np.ndarray
    positions: tuple[int, ...]
    strange: np.ndarray | None = None

    @property
    def own_frames(self) -> int:
        """Latent frames of the block itself."""
        return len(self.positions) - self.context.shape[1]

    def own_context(self, sample: int) -> np.ndarray:
        """The frames of its own that a sample attends to."""
        return self.context[sample] if self.strange is None else self.context[sample][~self.strange[sample]]

    def local_frames(self, start: int) -> int:
        """How many frames of the context, its last ones, run up to the block at `start`."""
        size = self.context.shape[1]
        count = 0
        while count < size and (self.context[:, size - 1 - count] == start - 1 - count).all():
            count += 1
        return count


class TeacherForcing:
    """Implements `wan.model.Context` for a sequence: frames [clean | copy 1 | ...], each all blocks.

    The contexts of blocks that have fewer frames than the longest are filled up with frames that nothing attends to.

    Attributes:
        index: [B, blocks, S] frames of the sequence that are attended to, S those of the longest context.
        strange: [B, blocks, S] which of them are the next sample's.
        visible: [blocks, S] which are no filling.
        local: [blocks, S] which run up to the block.

    Args:
        plans: one a block.
        copies: how many noisy ones.
        height, width: of a frame, in tokens.
        head_dim: channels of a head.
        device: of the keys and values.
        dtype: of the attention.
    """

    def __init__(
        self,
        plans: Sequence[BlockPlan],
        copies: int,
        height: int,
        width: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.blocks = len(plans)
        self.copies = copies
        self.frames = plans[0].own_frames
        self.grid = (height, width)
        self.dtype = dtype
        sizes = np.array([plan.context.shape[1] for plan in plans])
        shape = (len(plans[0].context), len(plans), sizes.max())
        index = np.zeros(shape, np.int64)
        strange = np.zeros(shape, bool)
        local = np.zeros(shape[1:], bool)
        positions = np.zeros((len(plans), shape[2] + self.frames), np.int64)
        for number, (plan, size) in enumerate(zip(plans, sizes, strict=True)):
            index[:, number, :size] = plan.context
            if plan.strange is not None:
                strange[:, number, :size] = plan.strange
            local[number, size - plan.local_frames(number * self.frames) : size] = True
            positions[number, :size] = plan.positions[:size]
            positions[number, -self.frames :] = plan.positions[size:]
        whose = (np.arange(len(index))[:, None, None] + strange) % len(index)
        visible = np.arange(shape[2]) < sizes[:, None]
        self.index = torch.from_numpy(index).to(device)
        self.strange = torch.from_numpy(strange).to(device)
        self.local = torch.from_numpy(local).to(device)
        self.visible = torch.from_numpy(visible).to(device)
        self.whose = torch.from_numpy(whose).to(device)  # sample that each of them is taken from
        self.bias = None if visible.all() else self._bias(len(index))
        table = rope_table(positions.flatten().tolist(), *self.grid, head_dim, device)
        table = rearrange(table, "(s t) one c -> s t one c", s=self.blocks)
        own = self.frames * height * width
        self.own_table = table[:, -own:]
        self.context_table = table[:, :-own]

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """See `wan.model.Context`; blocks come back folded into the batch."""
        q = self._unfold(q)
        k = self._unfold(k)
        v = self._unfold(v).to(self.dtype)
        seen_k = rotate(self._gather(k[:, 0]), self.context_table)  # [B, blocks, context tokens, heads, head_dim]
        seen_v = self._gather(v[:, 0])
        q = rotate(q, self.own_table).to(self.dtype)
        k = rotate(k, self.own_table).to(self.dtype)
        every_copy = (-1, 1 + self.copies, -1, -1, -1, -1)
        k = torch.cat([seen_k.to(self.dtype).unsqueeze(1).expand(every_copy), k], 3)
        v = torch.cat([seen_v.unsqueeze(1).expand(every_copy), v], 3)
        return Attended(_fold(q), _fold(k), _fold(v), self.bias)

    def _bias(self, batch: int) -> torch.Tensor:
        """[B copies blocks, 1, 1, tokens attended to] of the logits: minus infinity where the context is filled up."""
        visible = repeat(self.visible, "s f -> (b c s) 1 1 (f p)", b=batch, c=1 + self.copies, p=math.prod(self.grid))
        bias = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -torch.inf)
        return pad(bias, (0, self.frames * math.prod(self.grid)))

    def _unfold(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, copies blocks tokens, heads, head_dim] to [B, 1 + copies, blocks, tokens of one, ...]."""
        return rearrange(x, "b (c s t) n d -> b c s t n d", c=1 + self.copies, s=self.blocks)

    def _gather(self, x: torch.Tensor) -> torch.Tensor:
        """Of the clean frames' keys or values those that the plans name."""
        x = rearrange(x, "b s (f p) n d -> b (s f) p n d", f=self.frames)
        return rearrange(x[self.whose, self.index], "b s f p n d -> b s (f p) n d")


def _fold(x: torch.Tensor) -> torch.Tensor:
    """Copies and blocks into the batch, as attention takes them."""
    return rearrange(x, "b c s t n d -> (b c s) t n d")
