"""The rules by which a layer makes merged frames of those that leave its local part.

To add one, write a class and name it in `MERGES` and among the choices of `pipeline.policies`.
"""

from collections.abc import Callable

import torch
from einops import rearrange, repeat

from pipeline.context import ContextPolicy
from pipeline.frames import FrameShape
from pipeline.merged import MergeRule, Seen, Tokens


class RunningMeans(MergeRule):
    """A slow and a fast running mean of the frames that left (MemRoPE, arXiv 2603.12513).

    The frames that leave are averaged over all their tokens to one key and one value; a merged frame has it at all its
    places.
    """

    def __init__(self, policy: ContextPolicy, shape: FrameShape) -> None:
        self.rates = (policy.merge_long, policy.merge_short)
        self.shape = shape

    def before_block(self, memory: Tokens | None, leaving: Tokens, seen: Seen) -> Tokens:
        kv = torch.stack([leaving.keys, leaving.values]).float()  # a mean in bfloat16 would stand still
        new = self.mean(kv)  # [2, B, tokens of a frame, heads, head_dim]
        size = self.shape.tokens()
        slow = fast = new
        if memory is not None:
            old = torch.stack([memory.keys, memory.values])
            slow, fast = self.moved(old[:, :, :size], old[:, :, size:], new)
        keys, values = torch.cat([slow, fast], dim=2)
        return Tokens.of((-1, -2), keys, values)

    def mean(self, kv: torch.Tensor) -> torch.Tensor:
        mean = kv.mean(dim=2, keepdim=True)
        return mean.expand(-1, -1, self.shape.tokens(), -1, -1)

    def moved(self, slow: torch.Tensor, fast: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both means after `new` has come."""
        long, short = self.rates
        return torch.lerp(slow, new, long), torch.lerp(fast, new, short)


class AdaptiveMeans(RunningMeans):
    """The same token by token, the fast one faster where more has changed (MemRoPE's adaptive form).

    A token's rate is between 0.1 and 5 times `merge_short`, by how far its key is from the mean of the newest frames,
    in proportion to the farthest one.
    """

    def mean(self, kv: torch.Tensor) -> torch.Tensor:
        return rearrange(kv, "two b (f t) h d -> two b f t h d", t=self.shape.tokens()).mean(dim=2)

    def moved(self, slow: torch.Tensor, fast: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        long, short = self.rates
        change = (new[0] - fast[0]).norm(dim=-1).mean(dim=-1)  # [B, T]
        change = change / change.amax(dim=1, keepdim=True).clamp(min=1e-6)
        rate = repeat(short * (0.1 + 4.9 * change), "b t -> b t 1 1")
        return torch.lerp(slow, new, long), torch.lerp(fast, new, rate)


MERGES: dict[str, Callable[[ContextPolicy, FrameShape], MergeRule]] = {
    "ema": RunningMeans,
    "ema_adaptive": AdaptiveMeans,
}


def find_rule(policy: ContextPolicy, shape: FrameShape) -> MergeRule | None:
    """The rule of a policy whose contexts have merged frames."""
    return MERGES[policy.merge](policy, shape) if policy.merged_frames else None
