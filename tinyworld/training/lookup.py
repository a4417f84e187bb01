"""Where attention is taught to look: at what the sink and the memory show of the same place."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, repeat

from tinyworld.training.teacher_forcing import BlockPlan, TeacherForcing
from tinyworld.world.scene import VIEW
from wan.model import Attended


class Lookup:
    """Teaches some heads to find in sink and memory the place that a token shows.

    To recall a place takes three steps: to carry on what is in view to the place that comes into view, to find that
    place in the memory though nothing tells how far the camera has moved since, and to copy it. The error of the
    picture alone rewards none of them before all three are there. The camera's truth tells which tokens are right.

    Stands before the context of a forward (`wan.model.Context`) and sees what its layers' attention works on.

    Attributes:
        surprise: -log of the attention that is paid where it should be, summed over the tokens in view, and over those
            that their block uncovers.
        tokens: how many there were of both.

    Args:
        heads: (layer, head) of each.
        camera: [B, F] pixels.
    """

    def __init__(self, heads: Sequence[tuple[int, int]], camera: np.ndarray) -> None:
        self.heads = tuple(heads)
        self.camera = camera
        self.surprise: tuple[list[torch.Tensor], ...] = ([], [])
        self.tokens = [0, 0]

    def begin(self, context: TeacherForcing, first: int, plans: Sequence[BlockPlan]) -> None:
        """The next forward runs the blocks from number `first` on that `context` has begun."""
        self.context = context
        rows, columns = context.grid
        token = VIEW / columns  # pixels
        right, in_view = [], []
        for number in range(first, first + context.blocks):
            plan = plans[number]
            start = number * plan.own_frames
            own = np.tile(np.arange(start, start + plan.own_frames), (len(self.camera), 1))
            same = self._same_place(own, plan.context, token * np.arange(columns))
            if plan.strange is not None:
                same &= ~plan.strange.repeat(columns, 1)[:, None]
            remembered = columns * (plan.context.shape[1] - plan.local_frames(start))
            in_view.append(repeat(same[..., remembered:].any(-1), "b (f w) -> b (f r w)", r=rows, w=columns))
            same[..., remembered:] = False
            same = np.pad(same, ((0, 0), (0, 0), (0, own.shape[1] * columns)))
            right.append(_in_the_same_row(same, rows, columns))
        self.right = torch.from_numpy(np.stack(right, 1)).to(context.device)  # [B, blocks, own tokens, all tokens]
        self.in_view = torch.from_numpy(np.stack(in_view, 1)).to(context.device)  # [B, blocks, own tokens]

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """See `wan.model.Context`."""
        attended = self.context.update(layer, q, k, v)
        for of_layer, head in self.heads:
            if of_layer == layer:
                self.judge(attended.q[..., head, :], attended.keys[..., head, :])
        return attended

    def judge(self, q: torch.Tensor, k: torch.Tensor) -> None:
        """Add up the surprise of a head's rotated queries and keys [B copies blocks, tokens, head_dim]."""
        right = self.right
        sample, block = torch.nonzero(right.flatten(2).any(-1), as_tuple=True)
        right = right[sample, block].unsqueeze(1)  # [those, 1, own tokens, all tokens]
        in_view = self.in_view[sample, block].unsqueeze(1)
        b, s = self.right.shape[:2]
        q = rearrange(q, "(b c s) t d -> b s c t d", b=b, s=s)[sample, block]
        k = rearrange(k, "(b c s) t d -> b s c t d", b=b, s=s)[sample, block]
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        surprise = logits.logsumexp(-1) - logits.masked_fill(~right, -1e4).logsumexp(-1)
        taught = right.any(-1)
        for kind, where in enumerate((taught & in_view, taught & ~in_view)):
            self.surprise[kind].append((surprise * where).sum())
            self.tokens[kind] += int(where.sum()) * surprise.shape[1]

    def error(self) -> torch.Tensor | float:
        """The mean surprise of the tokens in view and that of the tokens that a block uncovers, added up."""
        total: torch.Tensor | float = 0.0
        for surprise, tokens in zip(self.surprise, self.tokens, strict=True):
            if tokens:
                total = total + torch.stack(surprise).sum() / tokens
        return total

    def _same_place(self, own: np.ndarray, context: np.ndarray, left: np.ndarray) -> np.ndarray:
        """[B, own columns, context columns] whether two columns of tokens show the same place, to half a token."""
        sample = np.arange(len(own))[:, None]
        here = (self.camera[sample, own][..., None] + left).reshape(len(own), -1)
        there = (self.camera[sample, context][..., None] + left).reshape(len(own), -1)
        return np.abs(here[:, :, None] - there[:, None, :]) <= (left[1] - left[0]) / 2


def _in_the_same_row(same: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[B, own columns, all columns] to [B, own tokens, all tokens]: no token is right in another row."""
    same = rearrange(same, "b (f w) (g v) -> b f 1 w g 1 v", w=columns, v=columns)
    row = np.eye(rows, dtype=bool)[None, None, :, None, None, :, None]
    return rearrange(same & row, "b f r w g q v -> b (f r w) (g q v)")
