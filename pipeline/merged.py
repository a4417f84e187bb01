"""Frames that each layer makes for itself of the frames that left: when they are made, and where they are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tokens:
    """Keys and values of one layer, token by token.

    Attributes:
        keys, values: [B, T, heads, head_dim]
        frames: [B, T], the frame of the video that each comes from.
        uses: [B, T], how often each was chosen.
    """

    keys: torch.Tensor
    values: torch.Tensor
    frames: torch.Tensor
    uses: torch.Tensor

    @classmethod
    def of(cls, frames: Sequence[int], keys: torch.Tensor, values: torch.Tensor) -> "Tokens":
        """Tokens [B, T, heads, head_dim] of whole frames, all of one size."""
        of = torch.tensor(list(frames), device=keys.device).repeat_interleave(keys.shape[1] // len(frames))
        of = of.expand(len(keys), -1)
        return cls(keys, values, of, torch.zeros_like(of))

    def __len__(self) -> int:
        return self.keys.shape[1]

    def part(self, first: int, last: int) -> "Tokens":
        """Those from `first` to before `last`."""
        span = slice(first, last)
        return Tokens(self.keys[:, span], self.values[:, span], self.frames[:, span], self.uses[:, span])

    def take(self, indices: torch.Tensor) -> "Tokens":
        """Those at `indices` [B, n] of each sample."""
        wide = indices[:, :, None, None].expand(-1, -1, *self.keys.shape[2:])
        return Tokens(
            self.keys.gather(1, wide),
            self.values.gather(1, wide),
            self.frames.gather(1, indices),
            self.uses.gather(1, indices),
        )

    def joined(self, other: "Tokens") -> "Tokens":
        """These, then the others."""
        return Tokens(
            torch.cat([self.keys, other.keys], dim=1),
            torch.cat([self.values, other.values], dim=1),
            torch.cat([self.frames, other.frames], dim=1),
            torch.cat([self.uses, other.uses], dim=1),
        )


@dataclass(frozen=True)
class Seen:
    """What a rule can know of the present forward.

    Attributes:
        q: queries of the block, [B, T, heads, head_dim].
        rotated_q: the same, rotated.
        rotated_before: those of the block before at its commit, rotated; None for the first block.
        sink: tokens of the pinned frames.
        is_first: no frame has left before.
    """

    q: torch.Tensor
    rotated_q: torch.Tensor
    rotated_before: torch.Tensor | None
    sink: Tokens
    is_first: bool


class MergeRule:
    """What a layer makes of the frames that leave; a rule overrides one of the two, or both.

    Attributes:
        at_own_index: it keeps tokens as they come, their keys rotated to the index of their frame.
        asks_before: it needs the queries of the block before.
        in_float32: it keeps what it makes in float32, whatever the type of the frames.
        by_head: it makes the same of a head's keys and values whatever the other heads hold.
    """

    at_own_index = False
    asks_before = False
    by_head = False
    in_float32 = False

    def before_block(self, memory: Tokens | None, leaving: Tokens, seen: Seen) -> Tokens:
        """The merged tokens that the block is denoised with, given those of the block before."""
        return memory

    def before_commit(self, memory: Tokens, leaving: Tokens, seen: Seen) -> Tokens:
        """The merged tokens that it is committed with, and that the next block begins with."""
        return memory


class MergedMemory:
    """The merged tokens of all layers, through the forwards of one block after another.

    What a block began with is kept until the next one begins, so that a block may be made or committed again.
    """

    def __init__(self, rule: MergeRule, layers: int) -> None:
        self.rule = rule
        self.started: list[Tokens | None] = [None] * layers  # what the block began with
        self.denoised: list[Tokens | None] = [None] * layers  # what it is denoised with
        self.current: list[Tokens | None] = [None] * layers
        self.queries_before: list[torch.Tensor | None] = [None] * layers
        self.queries: list[torch.Tensor | None] = [None] * layers  # of the last commit
        self.leaving: tuple[int, ...] = ()
        self.due: dict[str, set[int]] = {"block": set(), "commit": set()}  # layers whose tokens are still to be made

    def begin(self, leaving: Sequence[int], is_new: bool) -> None:
        """A block begins; `is_new` unless it is made again."""
        if is_new:
            self.started = list(self.current)
            self.queries_before = list(self.queries)
        self.leaving = tuple(leaving)
        layers = range(len(self.current)) if leaving else ()
        self.due = {"block": set(layers), "commit": set()}

    def commit(self) -> None:
        """The next forward is a commit."""
        if self.leaving:
            self.due["commit"] = set(range(len(self.current)))

    def update(
        self,
        layer: int,
        q: torch.Tensor,
        rotated_q: torch.Tensor,
        is_commit: bool,
        read: Callable[[Sequence[int]], Tokens],
    ) -> bool:
        """Make a layer's merged tokens where that is due; True if they are others now.

        Args:
            q: queries of the block's own tokens.
            is_commit: whether this forward is a commit.
            read: frames at hand -> their tokens; of no frames, those of the sink.
        """
        due = {phase for phase, layers in self.due.items() if layer in layers}
        if due:
            leaving = read(self.leaving)
            seen = Seen(q, rotated_q, self.queries_before[layer], read(()), self.started[layer] is None)
            if "block" in due:
                self.denoised[layer] = self.rule.before_block(self.started[layer], leaving, seen)
                self.current[layer] = self.denoised[layer]
            if "commit" in due:
                self.current[layer] = self.rule.before_commit(self.denoised[layer], leaving, seen)
            for phase in due:
                self.due[phase].discard(layer)
        if is_commit and self.rule.asks_before:
            self.queries[layer] = rotated_q
        return bool(due)
