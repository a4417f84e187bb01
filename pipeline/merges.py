"""The rules by which a layer makes merged frames of those that leave its local part.

To add one, write a class and name it in `MERGES` and among the choices of `pipeline.merging`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange, repeat
from torch.nn import functional as F

from pipeline.context import ContextPolicy
from pipeline.frames import FrameShape
from pipeline.merged import MergeRule, Seen, Tokens


class RunningMeans(MergeRule):
    """A slow and a fast running mean of the frames that left (MemRoPE, arXiv 2603.12513).

    The frames that leave are averaged over all their tokens to one key and one value; a merged frame has it at all its
    places.
    """

    by_head = True
    in_float32 = True

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

    by_head = False  # how far is the mean over the heads

    def mean(self, kv: torch.Tensor) -> torch.Tensor:
        return rearrange(kv, "two b (f t) h d -> two b f t h d", t=self.shape.tokens()).mean(dim=2)

    def moved(self, slow: torch.Tensor, fast: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        long, short = self.rates
        change = (new[0] - fast[0]).norm(dim=-1).mean(dim=-1)  # [B, T]
        change = change / change.amax(dim=1, keepdim=True).clamp(min=1e-6)
        rate = repeat(short * (0.1 + 4.9 * change), "b t -> b t 1 1")
        return torch.lerp(slow, new, long), torch.lerp(fast, new, rate)


class Tether(MergeRule):
    """The best of the frames that left, whole, new ones moved towards the rest (TetherCache, arXiv 2606.13035).

    Frames that leave wait, unseen, until the block is committed. Then they and those kept are candidates: the mass of
    one is a softmax over the mean logits of the block's queries, its score adds how unlike it is to those near in
    time.
    """

    def __init__(self, policy: ContextPolicy, shape: FrameShape) -> None:
        self.policy = policy
        self.size = shape.tokens()

    def before_block(self, memory: Tokens | None, leaving: Tokens, seen: Seen) -> Tokens:
        return leaving.part(0, self.policy.merged_size * self.size) if memory is None else memory

    def before_commit(self, memory: Tokens, leaving: Tokens, seen: Seen) -> Tokens:
        waiting = leaving.part(len(memory), len(leaving)) if seen.is_first else leaving
        edited = self.pulled(waiting, seen.sink.joined(memory))
        candidates = memory.joined(edited)
        scores = self.scores(memory.joined(waiting), seen.q)
        best = scores.topk(self.policy.merged_size, dim=1).indices.sort(dim=1).values  # [B, M] frames
        tokens = repeat(best * self.size, "b m -> b m t", t=self.size)
        tokens = tokens + torch.arange(self.size, device=best.device)
        return candidates.take(rearrange(tokens, "b m t -> b (m t)"))

    def scores(self, candidates: Tokens, q: torch.Tensor) -> torch.Tensor:
        """[B, frames]"""
        keys = rearrange(candidates.keys.float(), "b (f t) h d -> b f t h d", t=self.size).mean(dim=2)
        logits = torch.einsum("b h d, b f h d -> b f", q.float().mean(dim=1), keys)
        heads, head_dim = keys.shape[-2:]
        mass = (logits / (heads * head_dim**0.5)).softmax(dim=1)
        frames = candidates.frames[:, :: self.size].float()
        reach = (frames.amax(dim=1) - frames.amin(dim=1) + 1) / 2
        apart = (frames[:, :, None] - frames[:, None]).abs() / reach[:, None, None]
        alike = (-apart).exp() * (1 - torch.eye(frames.shape[1], device=frames.device))
        redundancy = (alike * mass[:, None]).amax(dim=2)
        return mass + self.policy.tether_diversity * (1 - redundancy)

    def pulled(self, tokens: Tokens, towards: Tokens) -> Tokens:
        """Each frame moved towards mean and deviation of the others, in each head and channel."""
        pull = self.policy.tether_pull
        moved = []
        for x, rest in ((tokens.keys, towards.keys), (tokens.values, towards.values)):
            frames = rearrange(x.float(), "b (f t) h d -> b f t h d", t=self.size)
            rest = rest.float().unsqueeze(1)
            mean = frames.mean(dim=2, keepdim=True)
            deviation = frames.std(dim=2, keepdim=True, correction=0).clamp(min=1e-6)
            like_rest = (frames - mean) / deviation * rest.std(dim=2, keepdim=True, correction=0)
            like_rest = like_rest + rest.mean(dim=2, keepdim=True)
            moved.append(torch.lerp(frames, like_rest, pull).flatten(1, 2).to(x.dtype))
        return Tokens(*moved, tokens.frames, tokens.uses)


class Participation(MergeRule):
    """The older tokens that the latest queries ask for most (Deep Forcing, arXiv 2512.05081).

    Queries are those of the block's first denoising forward and, as far as `deep_recent` reaches, those of the block
    before at its commit. A token's score is its logit summed over them and over heads.
    """

    at_own_index = True
    asks_before = True

    def __init__(self, policy: ContextPolicy, shape: FrameShape) -> None:
        self.policy = policy
        self.size = shape.tokens()

    def before_block(self, memory: Tokens | None, leaving: Tokens, seen: Seen) -> Tokens:
        candidates = leaving if memory is None else memory.joined(leaving)
        before = self.size * (self.policy.deep_recent - self.policy.block)
        q = seen.rotated_q.float().sum(dim=1)
        if before:
            q = q + seen.rotated_before[:, -before:].float().sum(dim=1)
        scores = torch.einsum("b h d, b t h d -> b t", q, candidates.keys.float())
        scores = scores.masked_fill(candidates.uses >= self.policy.deep_uses, -torch.inf)
        best = scores.topk(self.policy.merged_frames * self.size, dim=1).indices.sort(dim=1).values
        chosen = candidates.take(best)
        return replace(chosen, uses=chosen.uses + 1)


class Nearest(MergeRule):
    """Tokens that leave go into the merged token that is most like them (after FAST-AR's TempCache).

    Nearly the same keys come again and again from frame to frame. A merged token is the mean of all that went into
    it; which one is nearest, the cosine of the keys says, heads together.
    """

    in_float32 = True

    def __init__(self, policy: ContextPolicy, shape: FrameShape) -> None:
        self.size = policy.merged_size * shape.tokens()

    def before_block(self, memory: Tokens | None, leaving: Tokens, seen: Seen) -> Tokens:
        leaving = replace(leaving, keys=leaving.keys.float(), values=leaving.values.float(), uses=leaving.uses + 1)
        if memory is None:
            memory, leaving = leaving.part(0, self.size), leaving.part(self.size, len(leaving))
        ours, theirs = (F.normalize(tokens.keys.flatten(2), dim=-1) for tokens in (memory, leaving))
        nearest = torch.einsum("b m d, b t d -> b t m", ours, theirs).argmax(dim=2)
        uses = memory.uses.scatter_add(1, nearest, leaving.uses)
        means = []
        for old, new in ((memory.keys, leaving.keys), (memory.values, leaving.values)):
            total = old * memory.uses[:, :, None, None]
            total = total.scatter_add(1, nearest[:, :, None, None].expand_as(new), new)
            means.append(total / uses[:, :, None, None])
        return Tokens(*means, memory.frames, uses)


MERGES: dict[str, Callable[[ContextPolicy, FrameShape], MergeRule]] = {
    "ema": RunningMeans,
    "ema_adaptive": AdaptiveMeans,
    "tether": Tether,
    "nearest": Nearest,
    "participation": Participation,
}


def merged_bytes(policy: ContextPolicy, shape: FrameShape, dtype: torch.dtype) -> int:
    """Bytes of the merged frames of all layers: those that a block began with, and those that it has made."""
    if not policy.merged_frames:
        return 0
    kept = torch.float32 if MERGES[policy.merge].in_float32 else dtype
    return 2 * policy.merged_frames * shape.nbytes(kept)


def find_rule(policy: ContextPolicy, shape: FrameShape) -> MergeRule | None:
    """The rule of a policy whose contexts have merged frames."""
    return MERGES[policy.merge](policy, shape) if policy.merged_frames else None
