"""How good the frames are that a rule retrieves for a block."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.retrieval.clips import Views
from evaluation.retrieval.engine import Block

METRICS = ("hit", "precision", "recall", "recovered", "redundancy", "spread", "useful", "gain")


class Clip:
    """One clip of latents with all that judging needs, computed once for every rule."""

    def __init__(
        self,
        latents: Tensor,
        views: Views | None = None,
        overlap: float = 0.75,
        gains: Mapping[int, Mapping[int, float]] | None = None,
    ):
        """Prepare.

        Args:
            latents: [F, C, H, W].
            views: the truth of what the frames show, if it is known.
            overlap: part of a block's frame that a frame of the past must show to count as the same place.
            gains: first frame of a block -> earlier frame -> what it gains for the block, where that was measured.
        """
        self.gains = gains or {}
        x = latents.float().flatten(1)
        unit = F.normalize(x - x.mean(0), dim=1)
        self.distance = torch.cdist(x, x)  # [F, F]
        self.similarity = unit @ unit.T  # [F, F]
        self.shown: Tensor | None = None  # [F, positions]
        if views is not None:
            self.shown = views.shown()
            positions = self.shown.float()
            shared = positions @ positions.T
            self.same_place = shared / positions.sum(1) >= overlap  # [F, F]

    def judge(self, block: Block, frames: Sequence[int]) -> list[float]:
        """The METRICS of the `frames` that were retrieved for a block; nan where there is no truth.

        hit: part of the k candidates nearest to the true block (Euclidean, to its nearest frame) that came back.
        precision, recall: retrieved frames that show the block's place; k or fewer such candidates that came back.
        recovered: of what the block shows, its attended frames do not and some candidate does: the part retrieved.
        redundancy: mean cosine between retrieved latents, less the clip's mean latent.
        spread: mean distance in time between two retrieved frames, in frames.
        useful: part of the k most useful candidates that came back, of those that gain anything.
        gain: what the retrieved frames gain, each alone, as a part of what these gain; below 0 where they do harm.
        """
        useful = self._useful_and_gain(block, frames)
        if not frames:  # the rule asked for nothing
            return [*[math.nan] * (len(METRICS) - len(useful)), *useful]
        if self.shown is None:
            place = [math.nan] * 3
        else:
            place = [*self._precision_and_recall(block, frames), self._recovered(block, frames)]
        return [self._hit(block, frames), *place, *self._redundancy_and_spread(frames), *useful]

    def _hit(self, block: Block, frames: Sequence[int]) -> float:
        gaps = self.distance[list(block.frames)][:, list(block.candidates)].amin(0)
        nearest = gaps.topk(len(frames), largest=False).indices.tolist()
        wanted = {block.candidates[i] for i in nearest}
        return len(wanted.intersection(frames)) / len(frames)

    def _precision_and_recall(self, block: Block, frames: Sequence[int]) -> tuple[float, float]:
        same = self.same_place[list(block.frames)].any(0)  # [F]
        relevant = int(same[list(block.candidates)].sum())
        if relevant == 0:
            return math.nan, math.nan
        found = int(same[list(frames)].sum())
        return found / len(frames), found / min(relevant, len(frames))

    def _recovered(self, block: Block, frames: Sequence[int]) -> float:
        shows = self._positions(block.frames)
        missing = shows & ~self._positions(block.attended)
        missing &= self._positions(block.candidates)
        if not missing.any():
            return math.nan
        retrieved = missing & self._positions(frames)
        return (retrieved.sum() / missing.sum()).item()

    def _useful_and_gain(self, block: Block, frames: Sequence[int]) -> tuple[float, float]:
        """Gains of frames between measured ones are interpolated; nan where no frame gains anything."""
        measured = self.gains.get(block.frames.start, {})
        if not measured:
            return math.nan, math.nan
        known = sorted(measured)
        candidates = list(block.candidates)
        gains = np.interp(candidates, known, [measured[frame] for frame in known])
        of_frame = dict(zip(candidates, gains.tolist(), strict=True))
        best = [frame for frame in sorted(candidates, key=lambda frame: -of_frame[frame]) if of_frame[frame] > 0]
        best = best[: block.count]
        if not best:
            return math.nan, math.nan
        found = len(set(best) & set(frames)) / len(best)
        return found, sum(of_frame[frame] for frame in frames) / sum(of_frame[frame] for frame in best)

    def _positions(self, frames: Sequence[int]) -> Tensor:
        """[positions] bool: what some of the frames shows."""
        return self.shown[list(frames)].any(0)

    def _redundancy_and_spread(self, frames: Sequence[int]) -> tuple[float, float]:
        """Means over the pairs of frames; of one frame, with itself."""
        chosen = torch.tensor(frames)
        first, second = chosen, chosen
        if len(frames) > 1:
            first, second = torch.combinations(chosen).T
        redundancy = self.similarity[first, second].mean().item()
        spread = (first - second).abs().float().mean().item()
        return redundancy, spread


def similarity_by_distance(descriptors: Tensor) -> Tensor:
    """[F-1] mean cosine between the descriptors [F, D] of frames 1, 2, ... F-1 apart."""
    unit = F.normalize(descriptors.float(), dim=1)
    cosine = unit @ unit.T
    means = []
    for lag in range(1, len(unit)):
        means.append(cosine.diagonal(lag).mean())
    return torch.stack(means)
