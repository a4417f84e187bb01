"""Teacher forcing, exactly: many blocks in one forward, each in the context its plan names.

One forward runs a group of consecutive blocks of a clip, once with clean frames and `copies` times
with noisy ones. At each layer every block attends to clean frames' keys and values, which come from
the clean run of their own block, as they do from the key/value cache in a rollout, and to its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

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


def groups(plans: Sequence[BlockPlan], taught: Sequence[bool] | None = None) -> list[list[int]]:
    """Runs of consecutive blocks whose contexts are equally long, taught all or none: what one forward can hold."""
    runs: list[list[int]] = []
    kinds = []
    for number, plan in enumerate(plans):
        kinds.append((plan.context.shape[1], taught is None or taught[number]))
    for block, kind in enumerate(kinds):
        if runs and kinds[runs[-1][-1]] == kind:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


class TeacherForcing:
    """Implements `wan.model.Context` over a sequence, group of blocks by group of blocks.

    Args:
        height, width: of a frame, in tokens.
        head_dim: channels of a head.
        device: of the keys and values.
    """

    def __init__(self, height: int, width: int, head_dim: int, device: torch.device) -> None:
        self.grid = (height, width)
        self.head_dim = head_dim
        self.device = device
        self.store: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # per layer: k, v of the clean frames so far

    def begin(self, plans: Sequence[BlockPlan], copies: int) -> None:
        """Set the blocks of the next forward: frames [clean | copy 1 | ...], each all blocks of the group."""
        self.blocks = len(plans)
        self.copies = copies
        self.frames = plans[0].own_frames
        index = np.stack([plan.context for plan in plans], 1)  # [B, blocks, context]
        self.index = torch.from_numpy(index).to(self.device)
        whose = np.zeros_like(index) + np.arange(len(index))[:, None, None]
        for number, plan in enumerate(plans):
            if plan.strange is not None:
                whose[:, number] = (whose[:, number] + plan.strange) % len(index)
        self.whose = torch.from_numpy(whose).to(self.device)  # sample that each of them is taken from
        tables = []
        for plan in plans:
            tables.append(rope_table(plan.positions, *self.grid, self.head_dim, self.device))
        table = torch.stack(tables)  # [blocks, T, 1, head_dim / 2]
        own = self.frames * self.grid[0] * self.grid[1]
        self.own_table = table[:, -own:]
        self.context_table = table[:, :-own]

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """See `wan.model.Context`; blocks come back folded into the batch."""
        q = self._unfold(q)
        k = self._unfold(k)
        v = self._unfold(v)
        seen_k, seen_v = self._gather(layer, k[:, 0], v[:, 0])  # [B, blocks, context tokens, heads, head_dim]
        seen_k = rotate(seen_k, self.context_table)
        q = rotate(q, self.own_table)
        k = rotate(k, self.own_table)
        every_copy = (-1, 1 + self.copies, -1, -1, -1, -1)
        k = torch.cat([seen_k.unsqueeze(1).expand(every_copy), k], 3)
        v = torch.cat([seen_v.unsqueeze(1).expand(every_copy), v], 3)
        return Attended(_fold(q), _fold(k), _fold(v))

    def _unfold(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, copies blocks tokens, heads, head_dim] to [B, 1 + copies, blocks, tokens of one, ...]."""
        return rearrange(x, "b (c s t) n d -> b c s t n d", c=1 + self.copies, s=self.blocks)

    def _gather(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add this group's clean keys and values to the store; pick those that the plans name."""
        k = rearrange(k, "b s (f p) n d -> b (s f) p n d", f=self.frames)
        v = rearrange(v, "b s (f p) n d -> b (s f) p n d", f=self.frames)
        if layer in self.store:
            past_k, past_v = self.store[layer]
            k = torch.cat([past_k, k], 1)
            v = torch.cat([past_v, v], 1)
        self.store[layer] = (k, v)
        seen_k = rearrange(k[self.whose, self.index], "b s f p n d -> b s (f p) n d")
        seen_v = rearrange(v[self.whose, self.index], "b s f p n d -> b s (f p) n d")
        return seen_k, seen_v


def _fold(x: torch.Tensor) -> torch.Tensor:
    """Copies and blocks into the batch, as attention takes them."""
    return rearrange(x, "b c s t n d -> (b c s) t n d")
