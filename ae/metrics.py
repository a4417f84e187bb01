"""What a retrieval rule brings back for each block of a clip, measured; and how sure the averages are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

METRICS = ("hit", "precision", "recall", "recovered", "redundancy", "spread")


class Policy(Protocol):
    """What judging asks of a context policy; `pipeline.context.RetrievedMemory` is one."""

    layout: Any  # with the sizes `memory` and `block`

    def candidates(self, start: int) -> range: ...

    def plan(self, start: int) -> Any:
        """What the block at `start` attends to whatever is retrieved: `sink` and `local` frames."""


def choices(policy: Policy, frames: int) -> list[int]:
    """First frames of the blocks of a clip that have a choice: more candidates than they retrieve."""
    size = policy.layout.block
    return [s for s in range(0, frames - size + 1, size) if len(policy.candidates(s)) > policy.layout.memory]


@dataclass(frozen=True)
class Views:
    """What each frame of a clip shows of a scene that a camera passes along: an interval of positions.

    Attributes:
        camera: position of the view's left edge for each frame, in any unit.
        view: width of the view in that unit.
        loop: length of a scene that closes on itself, or None.
    """

    camera: tuple[float, ...]
    view: float
    loop: float | None = None

    def shown(self, bins: int = 64) -> Tensor:
        """[F, positions] bool: which positions, `bins` to a view, each frame shows."""
        step = self.view / bins
        first = torch.tensor([round((x - min(self.camera)) / step) for x in self.camera])
        width = int(first.max()) + bins if self.loop is None else round(self.loop / step)
        columns = (first[:, None] + torch.arange(bins)) % width
        return torch.zeros(len(first), width, dtype=torch.bool).scatter_(1, columns, True)


class Clip:
    """One clip of latents with all that judging needs, computed once for every rule."""

    def __init__(self, latents: Tensor, policy: Policy, views: Views | None = None, overlap: float = 0.75):
        """Prepare.

        Args:
            latents: [F, C, H, W].
            overlap: part of a block's frame that a frame of the past must show to count as the same place.
        """
        self.policy, self.blocks = policy, choices(policy, len(latents))
        x = latents.float().flatten(1)
        self.distance = torch.cdist(x, x)  # [F, F]
        unit = F.normalize(x - x.mean(0), dim=1)
        self.likeness = unit @ unit.T  # [F, F]
        self.shown = views.shown() if views else None
        if self.shown is not None:
            shared = self.shown.float() @ self.shown.float().T
            self.same_place = shared / self.shown.sum(1) >= overlap  # [F, F]

    def judge(self, start: int, frames: Sequence[int]) -> list[float]:
        """The METRICS of `frames`, retrieved for the block that starts at `start`; nan where there is no truth.

        hit: part of the k candidates nearest to the true block (Euclidean, to its nearest frame) that came back.
        precision, recall: retrieved frames that show the block's place; k or fewer such candidates that came back.
        recovered: of what the block shows, its attended frames do not and some candidate does: the part retrieved.
        redundancy: mean cosine between retrieved latents, less the clip's mean latent.
        spread: mean distance in time between two retrieved frames, in frames.
        """
        candidates = self.policy.candidates(start)
        chosen, block = torch.tensor(frames), slice(start, start + self.policy.layout.block)
        pairs = torch.combinations(torch.arange(len(frames)))
        a, b = chosen[pairs].T if len(pairs) else (chosen, chosen)
        gaps = self.distance[block, candidates.start : candidates.stop].amin(0)
        nearest = {candidates[i] for i in gaps.topk(len(frames), largest=False).indices.tolist()}
        hit = len(nearest.intersection(frames)) / len(frames)
        place = self._place(start, candidates, chosen, block) if self.shown is not None else [math.nan] * 3
        return [hit, *place, self.likeness[a, b].mean().item(), (a - b).abs().float().mean().item()]

    def _place(self, start: int, candidates: range, chosen: Tensor, block: slice) -> list[float]:
        same = self.same_place[block].any(0)
        relevant = int(same[candidates.start : candidates.stop].sum())
        found = int(same[chosen].sum())
        recall = found / min(relevant, len(chosen)) if relevant else math.nan
        precision = found / len(chosen) if relevant else math.nan
        plan = self.policy.plan(start)
        missing = self.shown[block].any(0) & ~self.shown[[*plan.sink, *plan.local]].any(0)
        missing &= self.shown[candidates.start : candidates.stop].any(0)
        recovered = (missing & self.shown[chosen].any(0)).sum() / missing.sum()  # nan when nothing is missing
        return [precision, recall, recovered.item()]


def retrieve(descriptors: Tensor, clip: Clip, rule: Callable[[Tensor, Sequence[int], int], list[int]]) -> list:
    """What a rule retrieves for each block of a clip: [(start, frames), ...].

    Args:
        descriptors: [F, D]; the query is the one of the last frame before the block.
        rule: (similarities [n], candidates, k) -> indices among the candidates.
    """
    unit = F.normalize(descriptors.float(), dim=1)
    found = []
    for start in clip.blocks:
        candidates = clip.policy.candidates(start)
        similarities = unit[candidates.start : candidates.stop] @ unit[start - 1]
        chosen = rule(similarities, candidates, clip.policy.layout.memory)
        found.append((start, [candidates[i] for i in chosen]))
    return found


def similarity_by_distance(descriptors: Tensor) -> Tensor:
    """[F-1] mean cosine between the descriptors [F, D] of frames 1, 2, ... F-1 apart."""
    unit = F.normalize(descriptors.float(), dim=1)
    cosine = unit @ unit.T
    return torch.stack([cosine.diagonal(lag).mean() for lag in range(1, len(unit))])


def bootstrap(values: Tensor, resamples: int = 2000, seed: int = 0) -> Tensor:
    """Means over clips and seeds, resampled: [resamples, M] of values [seeds, clips, M]; nan is left out.

    Clips and seeds are drawn with replacement, independently; the same seed draws the same clips, so
    the difference of two results compares two rules clip by clip. (Efron & Tibshirani, 1993.)
    """
    generator = torch.Generator().manual_seed(seed)
    seeds, clips = values.shape[:2]
    clip_draws = torch.randint(clips, (resamples, clips), generator=generator)
    seed_draws = torch.randint(seeds, (resamples, seeds), generator=generator)
    return torch.stack([values[s][:, c].nanmean(dim=(0, 1)) for s, c in zip(seed_draws, clip_draws, strict=True)])
