"""Retrieval: what describes a frame, and which frames a description selects.

Two tables hold the choices. `DESCRIPTORS` turn a frame's clean latent into a vector;
`SELECTIONS` pick among the candidates. To add one, write a small class and name it there.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from ae.model import LatentAE


@dataclass(frozen=True)
class Selection:
    """What was retrieved for one block: per sample, frames and their similarities to the query, best first."""

    query_frame: int
    frames: tuple[tuple[int, ...], ...]
    similarities: tuple[tuple[float, ...], ...]


class Descriptor(Protocol):
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, F, C, H, W] clean latents to [B, F, D] float32 vectors; cosines between them mean likeness."""


class AvgPool:
    """Mean over space: one number a channel."""

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.float().mean(dim=(-2, -1))


@dataclass(frozen=True)
class AutoEncoder:
    """The trained retrieval encoder's L2-normalised embedding."""

    encoder: LatentAE

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        return self.encoder.encode(latents.float())


DESCRIPTORS = {"avg_pool": AvgPool, "ae": AutoEncoder}


class SelectionRule(Protocol):
    def __call__(self, similarities: torch.Tensor, frames: Sequence[int], k: int) -> list[int]:
        """Indices of at most k of the candidate `frames`, given their similarities [n] to the query, best first."""


def most_similar(similarities: torch.Tensor, frames: Sequence[int], k: int) -> list[int]:
    """The k nearest by cosine; equal similarities in the order of frames, so the outcome is always the same."""
    return torch.sort(similarities, descending=True, stable=True).indices[:k].tolist()


def most_recent(similarities: torch.Tensor, frames: Sequence[int], k: int) -> list[int]:
    """The k latest candidates, latest first."""
    return list(range(len(frames)))[::-1][:k]


def uniform(similarities: torch.Tensor, frames: Sequence[int], k: int) -> list[int]:
    """k candidates spread evenly over the past, earliest first."""
    k = min(k, len(frames))
    return [(2 * i + 1) * len(frames) // (2 * k) for i in range(k)]


def random(similarities: torch.Tensor, frames: Sequence[int], k: int) -> list[int]:
    """k candidates at random, drawn anew for every video and block.

    The draw follows from how many candidates there are and from the sum of their similarities to 3 decimals: the same
    whenever a video is made again, another one for another video. The rounding leaves it as it is where a batch of
    another size changes the last bits.
    """
    name = f"{len(frames)}/{round(similarities.double().sum().item(), 3) + 0.0}"
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    generator = torch.Generator().manual_seed(key)
    return torch.randperm(len(frames), generator=generator)[:k].tolist()


BESIDE = 3  # frames from one chosen by `around` to the next: a block's


def around(similarities: torch.Tensor, frames: Sequence[int], k: int) -> list[int]:
    """The most similar candidate, then those BESIDE, twice BESIDE, ... after and before it, then more alike.

    The query is the last frame, so the most similar frames show what is in view already. What comes into view next
    lay beside it: after it in time where the camera repeats its way, before it where it goes back.
    """
    ranked, index = most_similar(similarities, frames, len(frames)), {frame: i for i, frame in enumerate(frames)}
    best = frames[ranked[0]] if ranked else 0
    beside = [index.get(best + sign * gap) for gap in range(BESIDE, BESIDE * k, BESIDE) for sign in (1, -1)]
    return list(dict.fromkeys([*ranked[:1], *(i for i in beside if i is not None), *ranked]))[:k]


SELECTIONS = {
    "similarity": most_similar, "recency": most_recent, "uniform": uniform, "random": random, "around": around,
}  # fmt: skip


class Retrieval:
    """The index of one generation: descriptors of the finished frames, and who is selected among them.

    Descriptors sit in rows of one growing table; the rows of dropped frames are used again.
    """

    def __init__(self, descriptor: Descriptor, rule: SelectionRule = most_similar) -> None:
        self.descriptor, self.rule = descriptor, rule
        self.table: torch.Tensor | None = None  # [rows, B, D] float32, each of length 1
        self.rows: dict[int, int] = {}
        self.free: list[int] = []
        self.last = -1  # the last finished frame
        self.most_alike = MostAlike(self.vectors)

    def add(self, latents: torch.Tensor) -> None:
        """Index the clean latents [B, F, C, H, W] of the frames that follow the last ones."""
        for vector in F.normalize(self.descriptor(latents), dim=-1).unbind(1):
            self.last += 1
            if self.table is None:
                self.table = vector.new_zeros(64, *vector.shape)
                self.free = list(range(64))[::-1]
            elif not self.free:
                self.free = list(range(len(self.table), 2 * len(self.table)))[::-1]
                self.table = torch.cat([self.table, torch.zeros_like(self.table)])
            self.rows[self.last] = self.free.pop()
            self.table[self.rows[self.last]] = vector

    def drop(self, frame: int) -> None:
        """Forget a frame; it cannot be selected any more."""
        self.free.append(self.rows.pop(frame))

    def vectors(self, frames: Sequence[int]) -> torch.Tensor:
        """Normalised descriptors [len(frames), B, D]."""
        rows = torch.tensor([self.rows[frame] for frame in frames]).to(self.table.device, non_blocking=True)
        return self.table.index_select(0, rows)

    def select(self, candidates: Sequence[int], k: int) -> Selection:
        """Choose min(k, len(candidates)) of the candidate frames for each sample.

        The query is the descriptor of the last finished frame; likeness is the cosine, in float32.
        """
        query = self.table[self.rows[self.last]]
        similarities = torch.einsum("n b d, b d -> b n", self.vectors(candidates), query).cpu()
        chosen = [self.rule(row, candidates, k) for row in similarities]
        return Selection(
            query_frame=self.last + 1,
            frames=tuple(tuple(candidates[i] for i in row) for row in chosen),
            similarities=tuple(tuple(similarities[b, row].tolist()) for b, row in enumerate(chosen)),
        )


class MostAlike:
    """The two of a changing set of frames whose descriptors are nearest, on average over the samples.

    Every frame knows the nearest of those after it: one that comes is compared with those before it,
    and where one goes, only the frames that it was nearest to look again.

    Args:
        vectors: frames -> their normalised descriptors [n, B, D].
    """

    def __init__(self, vectors: Callable[[Sequence[int]], torch.Tensor]) -> None:
        self.vectors = vectors
        self.nearest: dict[int, tuple[float, int]] = {}  # frame -> (likeness, frame after it)

    def __call__(self, frames: Sequence[int]) -> tuple[int, int]:
        """A pair of the greatest likeness, the earlier frame first and as early as can be; `frames` are in order."""
        held = {*frames, -1}  # -1: no frame after it yet
        kept = {frame: pair for frame, pair in self.nearest.items() if frame in held and pair[1] in held}
        new = [frame for frame in frames if frame not in self.nearest]
        self.nearest = dict.fromkeys(frames, (-math.inf, -1)) | kept
        self._look(list(kept), new)
        self._look([frame for frame in frames[:-1] if frame not in kept], frames)
        first = max(frames, key=lambda frame: self.nearest[frame][0])
        return first, self.nearest[first][1]

    def _look(self, frames: Sequence[int], others: Sequence[int]) -> None:
        """Compare each of the frames with those of the others that come after it."""
        if not frames or not others:
            return
        # Rounded sums of float64 products: equal pairs are equal however many are computed together.
        likeness = torch.einsum("n b d, m b d -> n m", *(self.vectors(x).double() for x in (frames, others))).float()
        before = torch.tensor(others) <= torch.tensor(frames).unsqueeze(1)
        best, where = likeness.masked_fill_(before.to(likeness.device), -math.inf).max(dim=1)
        for frame, value, index in zip(frames, best.tolist(), where.tolist(), strict=True):
            if value > self.nearest[frame][0]:
                self.nearest[frame] = (value, others[index])
