"""The equations of merged frames written straight down over the keys and values of all frames: what a cache must equal.

Everything is kept, nothing is updated in place, and each merged frame is computed anew wherever it is asked for.
"""

import math

import torch

from pipeline.context import MERGED, OWN, OWN_INDEX, SINK, ContextPlan, ContextPolicy, Piece
from pipeline.frames import FrameShape
from pipeline.heads import read_head_groups
from pipeline.plain import PlainCache
from wan.model import Attended


class DenseCache(PlainCache):
    """The plain cache, and the merged pieces of a policy's plans."""

    def __init__(self, shape: FrameShape, policy: ContextPolicy) -> None:
        super().__init__(shape)
        self.policy = policy
        self.left: dict[int, tuple[int, ...]] = {}  # a block's first frame -> the frames that left with it
        self.queries: dict[
            tuple[int, int, str], torch.Tensor
        ] = {}  # (layer, block, forward) -> [B, T, heads, head_dim]
        self.forward = "first"
        self.step = -1

    def begin(self, plan: ContextPlan) -> None:
        super().begin(plan)
        self.left[plan.start] = plan.leaving
        self.forward, self.step = "first", -1

    def commit(self, plan: ContextPlan) -> None:
        super().commit(plan)
        self.forward = "commit"

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """As the plain cache; the queries are kept, and a policy's bias is written out token by token."""
        key = (layer, self.plan.start, self.forward)
        if self.forward == "commit" or key not in self.queries:
            self.queries[key] = q
        attended = super().update(layer, q, k, v)
        self.step += layer == 0 and self.forward == "first"
        if self.policy.bias == "none" and not self.policy.head_groups:
            return attended
        heads = [[self._bias(layer, sample, head) for head in range(q.shape[2])] for sample in range(len(q))]
        return attended._replace(bias=torch.stack([torch.stack(rows) for rows in heads]))

    def _bias(self, layer: int, sample: int, head: int) -> torch.Tensor:
        """[T, S]"""
        policy, rows = self.policy, []
        groups = read_head_groups(policy.head_groups).values() if policy.head_groups else ()
        for query in self.plan.own:
            row = []
            for place, piece in enumerate(self.plan.pieces(sample)):
                value = 0.0
                if policy.bias == "recency" and self.forward == "first" and piece.role != OWN:
                    distance = abs(query.position - piece.position)
                    value = -policy.bias_strength * distance ** (policy.bias_power * 2**self.step)
                for group in groups:
                    alike = [p for p, other in enumerate(self.plan.pieces(sample)) if other.role == piece.role]
                    number = alike.index(place)
                    from_end = number if piece.role == SINK else len(alike) - 1 - number
                    if head in group.heads[layer] and from_end >= group.sees.get(piece.role, len(alike)):
                        value = -torch.inf
                row += [value] * self.shape.tokens(piece.pool)
            rows += [row] * self.shape.tokens()
        return torch.tensor(rows)

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


def tethered(cache: DenseCache, layer: int, sample: int, number: int) -> torch.Tensor:
    """All choices from the first frame that left on, made again; the choice of a block counts at its commit."""
    policy, size = cache.policy, cache.shape.tokens()
    kept: list[tuple[int, torch.Tensor]] = []  # (frame, its keys and values [2, tokens, heads, head_dim])
    for start, left in sorted(cache.left.items()):
        new = [(frame, cache.frames[layer, frame][:, sample].double()) for frame in left]
        if not kept:
            kept, new = new[: policy.merged_size], new[policy.merged_size :]
        if not left or (start == cache.plan.start and cache.forward == "first"):
            continue
        sink = [cache.frames[layer, frame][:, sample].double() for frame in range(policy.sink_size)]
        q = cache.queries[layer, start, "commit"][sample].double().mean(dim=0)
        candidates = kept + new
        logits = [(q * kv[0].mean(dim=0)).sum() / cache.shape.head_dim**0.5 / len(q) for _, kv in candidates]
        mass = torch.stack(logits).softmax(dim=0)
        reach = (max(frame for frame, _ in candidates) - min(frame for frame, _ in candidates) + 1) / 2
        scores = []
        for place, (frame, _) in enumerate(candidates):
            near = [0.0]
            for other, (at, _) in enumerate(candidates):
                if other != place:
                    near.append(math.exp(-abs(frame - at) / reach) * mass[other].item())
            scores.append(mass[place].item() + policy.tether_diversity * (1 - max(near)))
        rest = torch.cat(sink + [kv for _, kv in kept], dim=1)
        for place, (frame, kv) in enumerate(new):
            like = (kv - kv.mean(1, True)) / kv.std(1, correction=0, keepdim=True)
            like = like * rest.std(1, correction=0, keepdim=True) + rest.mean(1, True)
            new[place] = (frame, kv + policy.tether_pull * (like - kv))
        candidates = kept + new
        best = sorted(range(len(candidates)), key=lambda place: -scores[place])[: policy.merged_size]
        kept = [candidates[place] for place in sorted(best)]
    assert kept[0][1].shape[1] == size
    return kept[number][1].float()


def participating(cache: DenseCache, layer: int, sample: int, number: int) -> torch.Tensor:
    """All cuts from the first one on, made again, token by token; keys are rotated."""
    policy, size = cache.policy, cache.shape.tokens()
    kept: list[tuple[torch.Tensor, int]] = []  # (rotated key and value [2, heads, head_dim], uses)
    for start, left in sorted(cache.left.items()):
        if not left:
            continue
        for frame in left:
            key, value = cache.frames[layer, frame][:, sample]
            key = cache._rotated(key, Piece(OWN, frame, frame))
            kept += [(torch.stack(pair), 0) for pair in zip(key, value, strict=True)]
        asked = []
        for frame in range(start + policy.block - policy.deep_recent, start + policy.block):
            block = frame // policy.block * policy.block
            forward = "first" if block == start else "commit"
            q = cache.queries[layer, block, forward][sample].unflatten(0, (policy.block, size))[frame - block]
            asked.append(cache._rotated(q, Piece(OWN, frame, frame)))
        q = torch.cat(asked).double().sum(dim=0)
        scores = []
        for kv, uses in kept:
            scores.append(-math.inf if uses >= policy.deep_uses else (kv[0] * q).sum().item())
        best = sorted(range(len(kept)), key=lambda place: -scores[place])[: policy.merged_frames * size]
        kept = [(kept[place][0], kept[place][1] + 1) for place in sorted(best)]
    tokens = torch.stack([kv for kv, _ in kept], dim=1)  # [2, tokens, heads, head_dim]
    return tokens[:, number * size : (number + 1) * size].float()


def nearest(cache: DenseCache, layer: int, sample: int, number: int) -> torch.Tensor:
    """Every token that left, one after another, into the merged token that was nearest when its block left."""
    size = cache.shape.tokens()
    groups: list[list[torch.Tensor]] = []  # of each merged token, what went into it, [2, heads, head_dim] each
    for frames in cache.leavings():
        tokens = [cache.frames[layer, frame][:, sample, place] for frame in frames for place in range(size)]
        if not groups:
            begin = cache.policy.merged_size * size
            groups, tokens = [[token] for token in tokens[:begin]], tokens[begin:]
        means = [torch.stack(group).double().mean(dim=0)[0].flatten() for group in groups]
        for token in tokens:
            cosines = [torch.cosine_similarity(token[0].double().flatten(), mean, dim=0) for mean in means]
            groups[int(torch.stack(cosines).argmax())].append(token)
    found = [torch.stack(group).double().mean(dim=0) for group in groups[number * size : (number + 1) * size]]
    return torch.stack(found, dim=1).float()


MERGED_FRAMES = {  # rule -> keys and values [2, tokens, heads, head_dim] of a merged frame
    "ema": running_mean,
    "ema_adaptive": adaptive_mean,
    "tether": tethered,
    "nearest": nearest,
    "participation": participating,
}
