"""The equations of merged frames written straight down over the keys and values of all frames: what a cache must equal.

Everything is kept, nothing is updated in place, and each merged frame is computed anew wherever it is asked for.
"""

import torch

from pipeline.context import MERGED, OWN_INDEX, ContextPlan, ContextPolicy, Piece
from pipeline.frames import FrameShape
from pipeline.plain import PlainCache


class DenseCache(PlainCache):
    """The plain cache, and the merged pieces of a policy's plans."""

    def __init__(self, shape: FrameShape, policy: ContextPolicy) -> None:
        super().__init__(shape)
        self.policy = policy
        self.left: dict[int, tuple[int, ...]] = {}  # a block's first frame -> the frames that left with it

    def begin(self, plan: ContextPlan) -> None:
        super().begin(plan)
        self.left[plan.start] = plan.leaving

    def _piece(self, layer: int, piece: Piece, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        if piece.role != MERGED:
            return super()._piece(layer, piece, sample)
        keys, values = MERGED_FRAMES[self.policy.merge](self, layer, sample, -1 - piece.frame)
        dtype = self.frames[layer, 0].dtype
        if piece.position != OWN_INDEX:
            keys = self._rotated(keys, piece)
        return keys.to(dtype), values.to(dtype)

    def leavings(self) -> list[tuple[int, ...]]:
        """The frames that left with each block so far, in order."""
        return [frames for _, frames in sorted(self.left.items()) if frames]

    def stacked(self, layer: int, sample: int, frames: tuple[int, ...]) -> torch.Tensor:
        """Unrotated keys and values of frames, [2, frames, tokens, heads, head_dim]."""
        return torch.stack([self.frames[layer, frame][:, sample] for frame in frames], dim=1)


def running_mean(cache: DenseCache, layer: int, sample: int, number: int) -> torch.Tensor:
    """A sum over all blocks that left, each weighed by how many came after it."""
    rate = (cache.policy.merge_long, cache.policy.merge_short)[number]
    blocks = cache.leavings()
    total = 0
    for place, frames in enumerate(blocks):
        weight = (1 - rate) ** (len(blocks) - 1 - place)
        if place > 0:
            weight *= rate
        total = total + weight * cache.stacked(layer, sample, frames).double().mean(dim=(1, 2))
    return total.float().unsqueeze(1).expand(-1, cache.shape.tokens(), -1, -1)


def adaptive_mean(cache: DenseCache, layer: int, sample: int, number: int) -> torch.Tensor:
    """The same for every token of a frame, one token after another."""
    blocks = cache.leavings()
    means = [cache.stacked(layer, sample, frames).double().mean(dim=1) for frames in blocks]
    found = means[0].clone()
    for mean in means[1:]:
        changes = []
        for token in range(cache.shape.tokens()):
            lengths = [torch.dist(mean[0, token, head], found[0, token, head]) for head in range(cache.shape.heads)]
            changes.append(sum(lengths) / len(lengths))
        for token, change in enumerate(changes):
            rate = cache.policy.merge_long
            if number == 1:
                rate = cache.policy.merge_short * (0.1 + 4.9 * change / max(changes))
            found[:, token] = rate * mean[:, token] + (1 - rate) * found[:, token]
    return found.float()


MERGED_FRAMES = {  # rule -> keys and values [2, tokens, heads, head_dim] of a merged frame
    "ema": running_mean,
    "ema_adaptive": adaptive_mean,
}
