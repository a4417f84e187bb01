"""Where attention is taught to look: at what the sink and the memory show of the same place."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from torch.nn.functional import pad

from tinyworld.training.teacher_forcing import TeacherForcing
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
        context: what the forward's attention works on.
    """

    def __init__(self, heads: Sequence[tuple[int, int]], camera: np.ndarray, context: TeacherForcing) -> None:
        self.heads = tuple(heads)
        self.context = context
        self.surprise: tuple[list[torch.Tensor], ...] = ([], [])
        self.tokens: tuple[list[torch.Tensor], ...] = ([], [])
        rows, columns = context.grid
        same = self._same_place(torch.from_numpy(camera).to(context.index.device), columns)
        same = same & (context.visible & ~context.strange)[:, :, None, None, :, None]
        local = context.local[:, None, None, :, None]
        in_view = (same & local).flatten(4).any(-1)
        self.in_view = repeat(in_view, "b s f w -> b s (f r w)", r=rows)  # [B, blocks, own tokens]
        row = torch.eye(rows, dtype=torch.bool, device=same.device)  # no token is right in another row
        right = rearrange(same & ~local, "b s f w g v -> b s f 1 w g 1 v") & row[:, None, None, :, None]
        right = rearrange(right, "b s f r w g q v -> b s (f r w) (g q v)")
        self.right = pad(right, (0, right.shape[2]))  # [B, blocks, own tokens, all tokens]

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """See `wan.model.Context`."""
        attended = self.context.update(layer, q, k, v)
        for of_layer, head in self.heads:
            if of_layer == layer:
                self.judge(attended.q[..., head, :], attended.keys[..., head, :])
        return attended

    def judge(self, q: torch.Tensor, k: torch.Tensor) -> None:
        """Add up the surprise of a head's rotated queries and keys [B copies blocks, tokens, head_dim]."""
        b, s = self.right.shape[:2]
        right = self.right.unsqueeze(1)  # [B, 1, blocks, own tokens, all tokens]
        logits = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        if self.context.bias is not None:
            logits = logits + self.context.bias.squeeze(1)
        logits = rearrange(logits, "(b c s) t u -> b c s t u", b=b, s=s)
        surprise = logits.logsumexp(-1) - logits.masked_fill(~right, -1e4).logsumexp(-1)
        taught = right.any(-1)
        in_view = self.in_view.unsqueeze(1)
        for kind, where in enumerate((taught & in_view, taught & ~in_view)):
            self.surprise[kind].append((surprise * where).sum())
            self.tokens[kind].append(where.sum() * surprise.shape[1])

    def error(self) -> torch.Tensor | float:
        """The mean surprise of the tokens in view and that of the tokens that a block uncovers, added up."""
        total: torch.Tensor | float = 0.0
        for surprise, tokens in zip(self.surprise, self.tokens, strict=True):
            total = total + sum(surprise) / sum(tokens).clamp_min(1)
        return total

    def _same_place(self, camera: torch.Tensor, columns: int) -> torch.Tensor:
        """[B, blocks, own frames, own columns, S, columns] whether two tokens show the same place, to half a token.

        Args:
            camera: [B, F] pixels.
            columns: tokens of a frame's row.
        """
        token = VIEW / columns  # pixels
        left = token * torch.arange(columns, device=camera.device)
        here = rearrange(camera, "b (s f) -> b s f 1 1 1", s=self.context.blocks) + left[:, None, None]
        of_context = camera.gather(1, self.context.index.flatten(1)).view(self.context.index.shape)
        there = rearrange(of_context, "b s g -> b s 1 1 g 1") + left
        return (here - there).abs() <= token / 2
