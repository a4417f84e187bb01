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

from wan.rope import rope_table, rotate

BLOCK = 3


@dataclass(frozen=True)
class BlockPlan:
    """What one block attends to.

    Attributes:
        context: per sample, indices into the sequence of the frames attended to, [B, context frames].
        positions: their temporal positions, then those of the block's own frames.
    """

    context: np.ndarray
    positions: tuple[int, ...]


def groups(plans: Sequence[BlockPlan]) -> list[list[int]]:
    """Runs of consecutive blocks whose contexts are equally long: what one forward can hold."""
    runs: list[list[int]] = []
    for block, plan in enumerate(plans):
        if runs and plans[runs[-1][-1]].context.shape[1] == plan.context.shape[1]:
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
        self.grid, self.head_dim, self.device = (height, width), head_dim, device
        self.store: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # per layer: k, v of the clean frames so far

    def begin(self, plans: Sequence[BlockPlan], copies: int) -> None:
        """Set the blocks of the next forward: frames [clean | copy 1 | ...], each all blocks of the group."""
        self.blocks, self.copies = len(plans), copies
        index = np.stack([plan.context for plan in plans], 1)  # [B, blocks, context]
        self.index = torch.from_numpy(index).to(self.device)
        tables = [rope_table(plan.positions, *self.grid, self.head_dim, self.device) for plan in plans]
        cos, sin = (torch.stack(parts) for parts in zip(*tables, strict=True))  # [blocks, T, 1, head_dim / 2]
        own = BLOCK * self.grid[0] * self.grid[1]
        self.own_table = (cos[:, -own:], sin[:, -own:])
        self.context_table = (cos[:, :-own], sin[:, :-own])

    def join(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `wan.model.Context`; blocks come back folded into the batch."""
        q, k, v = (rearrange(x, "b (c s t) n d -> b c s t n d", c=1 + self.copies, s=self.blocks) for x in (q, k, v))
        seen_k, seen_v = self._gather(layer, k[:, 0], v[:, 0])  # [B, blocks, context tokens, heads, head_dim]
        seen_k = rotate(seen_k, self.context_table)
        q, k = rotate(q, self.own_table), rotate(k, self.own_table)
        shape = (-1, 1 + self.copies, -1, -1, -1, -1)
        k = torch.cat([seen_k.unsqueeze(1).expand(shape), k], 3)
        v = torch.cat([seen_v.unsqueeze(1).expand(shape), v], 3)
        return tuple(rearrange(x, "b c s t n d -> (b c s) t n d") for x in (q, k, v))

    def _gather(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add this group's clean keys and values to the store; pick those that the plans name."""
        k, v = (rearrange(x, "b s (f p) n d -> b (s f) p n d", f=BLOCK) for x in (k, v))
        if layer in self.store:
            past_k, past_v = self.store[layer]
            k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
        self.store[layer] = (k, v)
        sample = torch.arange(len(k), device=k.device)[:, None, None]
        return tuple(rearrange(x[sample, self.index], "b s f p n d -> b s (f p) n d") for x in (k, v))
