"""What is added to attention's logits: which frames a head sees, and how much less those farther away count."""

from collections.abc import Callable, Sequence

import torch

from pipeline.context import OWN, ContextPolicy, Piece
from pipeline.frames import FrameShape
from pipeline.heads import read_head_groups


def recency(policy: ContextPolicy, distance: int, step: int) -> float:
    """Less the farther a frame is, and ever more so from step to step (Recency Forcing, arXiv 2609.19729).

    Args:
        distance: between the query's temporal index and the key's.
        step: of denoising, from 0.
    """
    return -policy.bias_strength * abs(distance) ** (policy.bias_power * 2**step)


BIASES: dict[str, Callable[[ContextPolicy, int, int], float]] = {"recency": recency}


class LogitBias:
    """The bias of a policy's contexts, for each layer, head, own frame and piece."""

    def __init__(self, policy: ContextPolicy, shape: FrameShape) -> None:
        self.policy, self.shape = policy, shape
        self.groups = read_head_groups(policy.head_groups).values() if policy.head_groups else ()
        self.made: dict[tuple[int | None, int | None], torch.Tensor | None] = {}

    def begin(self, rows: Sequence[Sequence[Piece]]) -> None:
        """A context is laid out: of each sample the pieces, in order, the block's own last."""
        self.rows = rows
        self.made.clear()

    def at(self, layer: int, step: int | None, device: torch.device) -> torch.Tensor | None:
        """[B, heads, T, S] or with 1 in place of some, for the logits of a forward.

        Args:
            step: of denoising, from 0; None for a commit, in which only what heads see differs.
        """
        step = step if self.policy.bias != "none" else None
        key = (layer if self.groups else None, step)
        if key not in self.made:
            self.made[key] = self._make(layer, step, device)
        return self.made[key]

    def _make(self, layer: int, step: int | None, device: torch.device) -> torch.Tensor | None:
        parts = []
        if self.groups:
            parts.append(self._hidden(layer))
        if step is not None:
            parts.append(self._decay(step))
        if not parts:
            return None
        tokens = torch.tensor([self.shape.tokens(piece.pool) for piece in self.rows[0]])
        whole = sum(parts).repeat_interleave(tokens, dim=-1)
        return (
            whole.repeat_interleave(self.shape.tokens(), dim=2).to(device) if whole.shape[2] > 1 else whole.to(device)
        )

    def _hidden(self, layer: int) -> torch.Tensor:
        """[1, heads, 1, pieces] of 0 and -inf."""
        found = torch.zeros(1, self.shape.heads, 1, len(self.rows[0]))
        for group in self.groups:
            hidden = group.hidden(self.rows[0])  # samples differ in frames, not in roles
            for head in group.heads[layer]:
                found[0, head, 0, hidden] = -torch.inf
        return found

    def _decay(self, step: int) -> torch.Tensor:
        """[B, 1, own frames, pieces]"""
        rule = BIASES[self.policy.bias]
        own = [piece for piece in self.rows[0] if piece.role == OWN]
        found = torch.zeros(len(self.rows), 1, len(own), len(self.rows[0]))
        for sample, row in enumerate(self.rows):
            for place, query in enumerate(own):
                for number, piece in enumerate(row):
                    if piece.role != OWN:
                        found[sample, 0, place, number] = rule(self.policy, query.position - piece.position, step)
        return found


def find_bias(policy: ContextPolicy, shape: FrameShape) -> LogitBias | None:
    """The bias of a policy that has one."""
    return LogitBias(policy, shape) if policy.head_groups or policy.bias != "none" else None
