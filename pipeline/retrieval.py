"""The retrieval index: describes finished frames and finds those that are similar to the latest one."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import torch
from torch.nn import functional as F

from pipeline.descriptors import Asking, Describe
from pipeline.selection import SelectionRule, most_similar
from utils.streams import OnHost


@dataclass(frozen=True)
class Selection:
    """What was retrieved for one block.

    Attributes:
        block_start: the block's first frame.
        frames: per sample of the batch, best first.
        similarities: of those frames to the query.
    """

    block_start: int
    frames: tuple[tuple[int, ...], ...]
    similarities: tuple[tuple[float, ...], ...]


class Index(Protocol):
    """What a generation asks of its index."""

    def add(self, latents: torch.Tensor) -> None:
        """Take in the clean latents [B, F, C, H, W] of the frames that follow the last ones."""

    def drop(self, frame: int) -> None:
        """Forget a frame; it is no candidate any more."""

    def most_similar_pair(self, frames: Sequence[int]) -> tuple[int, int]:
        """Two of the frames that are most similar, the earlier one first."""

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: torch.Tensor | None = None
    ) -> Selection:
        """Choose min(k, len(candidates)) of the candidates for each sample, whose random numbers come from `rngs`.

        Args:
            draft: [B, 1, C, H, W] latents that they are to be like; by default those of the last finished frame.
        """


class Retrieval:
    """The index of one generation: descriptors of the finished frames, and a rule that chooses among them.

    Descriptors sit in rows of one growing table; the rows of dropped frames are used again.
    """

    def __init__(self, describe: Describe, rule: SelectionRule = most_similar) -> None:
        self.describe, self.rule = describe, rule
        self.table: torch.Tensor | None = None  # [rows, B, D] float32, each of length 1
        self.rows: dict[int, int] = {}  # frame -> row
        self.free: list[int] = []
        self.last = -1  # the last finished frame
        self.coming: list[tuple[range, OnHost]] = []  # frames, and their vectors on the way to the host
        self.on_host: dict[int, torch.Tensor] = {}  # frame -> [B, D], where the table lies on a GPU
        self.similar: OnHost | None = None  # [rows, B], of every row to the last frame, where the table lies on a GPU
        self.recent: torch.Tensor | None = None  # [B, F, C, H, W] the latest, where the descriptor asks with them
        self.most_similar_pair = MostSimilarPair(self.host_vectors)

    def __deepcopy__(self, memo: dict) -> "Retrieval":
        """An index with the same frames; what describes them, and its weights, is shared."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        memo[id(self.describe)] = self.describe
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def add(self, latents: torch.Tensor) -> None:
        if isinstance(self.describe, Asking):
            known = latents if self.recent is None else torch.cat([self.recent, latents], dim=1)
            self.recent = known[:, -self.describe.past :]
        vectors = F.normalize(self.describe(latents), dim=-1)
        first = self.last + 1
        for vector in vectors.unbind(1):
            if not self.free:
                self._grow(vector)
            self.last += 1
            row = self.free.pop()
            self.rows[self.last] = row
            self.table[row] = vector
        if vectors.device.type == "cuda":  # all that the host may ask for starts its way now
            self.coming.append((range(first, self.last + 1), OnHost(vectors)))
            self.similar = OnHost(torch.einsum("n b d, b d -> n b", self.table, vectors[:, -1]))

    def drop(self, frame: int) -> None:
        self.free.append(self.rows.pop(frame))
        self.on_host.pop(frame, None)

    def vectors(self, frames: Sequence[int]) -> torch.Tensor:
        """Normalised descriptors [len(frames), B, D]."""
        rows = torch.tensor([self.rows[frame] for frame in frames])
        return self.table.index_select(0, rows.to(self.table.device, non_blocking=True))

    def host_vectors(self, frames: Sequence[int]) -> torch.Tensor:
        """The same on the host."""
        if self.table.device.type == "cpu":
            return self.vectors(frames)
        self._take_in()
        return torch.stack([self.on_host[frame] for frame in frames])

    def _take_in(self) -> None:
        """Keep what has come to the host, in memory that is not pinned."""
        for frames, vectors in self.coming:
            for frame, vector in zip(frames, vectors.get().clone().unbind(1), strict=True):
                if frame in self.rows:
                    self.on_host[frame] = vector
        self.coming = []

    def similarities(self, candidates: Sequence[int]) -> list[list[float]]:
        """Cosines in float32 of the candidates to the last finished frame, a row for each sample."""
        if self.similar is None:
            query = self.table[self.rows[self.last]]
            return torch.einsum("n b d, b d -> b n", self.vectors(candidates), query).tolist()
        rows = self.similar.get().tolist()
        found = [rows[self.rows[frame]] for frame in candidates]
        return [list(row) for row in zip(*found, strict=True)]

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: torch.Tensor | None = None
    ) -> Selection:
        """See `Index`; similarity is the cosine in float32.

        A descriptor may ask otherwise than with the last finished frame, and then for nothing, too. As the samples of
        a batch retrieve equally many frames, they retrieve as many as the one that finds most worth it.
        """
        if draft is not None:
            query = F.normalize(self.describe(draft), dim=-1).squeeze(1)
            similarities = torch.einsum("n b d, b d -> b n", self.vectors(candidates), query).tolist()
        elif isinstance(self.describe, Asking):
            query = self.describe.query(self.recent)
            cosines = torch.einsum("n b d, b d -> b n", self.vectors(candidates), query)
            worth_it = cosines > (query @ self.describe.nothing)[:, None]
            k = min(k, int(worth_it.sum(1).max()))
            similarities = cosines.tolist()
        else:
            similarities = self.similarities(candidates)
        self._take_in()  # the host has just waited for what came after it
        frames, found = [], []
        for row, rng in zip(similarities, rngs, strict=True):
            chosen = self.rule(row, candidates, k, rng)
            frames.append(tuple(candidates[i] for i in chosen))
            found.append(tuple(row[i] for i in chosen))
        return Selection(self.last + 1, tuple(frames), tuple(found))

    def _grow(self, vector: torch.Tensor) -> None:
        if self.table is None:
            self.table = vector.new_zeros(64, *vector.shape)
            self.free = list(range(64))[::-1]
        else:
            self.free = list(range(len(self.table), 2 * len(self.table)))[::-1]
            self.table = torch.cat([self.table, torch.zeros_like(self.table)])


class MostSimilarPair:
    """The two of a changing set of frames whose descriptors are nearest, on average over the samples.

    Every frame knows the nearest of those after it: one that comes is compared with those before it,
    and where one goes, only the frames that it was nearest to look again.

    Args:
        vectors: frames -> their normalised descriptors [n, B, D].
    """

    def __init__(self, vectors: Callable[[Sequence[int]], torch.Tensor]) -> None:
        self.vectors = vectors
        self.nearest: dict[int, tuple[float, int]] = {}  # frame -> (similarity, frame after it)

    def __call__(self, frames: Sequence[int]) -> tuple[int, int]:
        """A pair of the greatest similarity, the earlier frame first and as early as can be; `frames` are in order."""
        present = {*frames, -1}  # -1: no frame after it yet
        kept = {}
        for frame, (similarity, other) in self.nearest.items():
            if frame in present and other in present:
                kept[frame] = (similarity, other)
        new = [frame for frame in frames if frame not in self.nearest]
        self.nearest = dict.fromkeys(frames, (-math.inf, -1)) | kept
        self._compare(list(kept), new)
        self._compare([frame for frame in frames[:-1] if frame not in kept], frames)
        first = max(frames, key=lambda frame: self.nearest[frame][0])
        return first, self.nearest[first][1]

    def _compare(self, frames: Sequence[int], others: Sequence[int]) -> None:
        """Compare each of the frames with those of the others that come after it."""
        if not frames or not others:
            return
        # Rounded sums of float64 products: equal pairs are equal however many are computed together.
        ours, theirs = self.vectors(frames).double(), self.vectors(others).double()
        similarity = torch.einsum("n b d, m b d -> n m", ours, theirs).float()
        before = torch.tensor(others) <= torch.tensor(frames).unsqueeze(1)
        best, where = similarity.masked_fill_(before.to(similarity.device), -math.inf).max(dim=1)
        for frame, value, index in zip(frames, best.tolist(), where.tolist(), strict=True):
            if value > self.nearest[frame][0]:
                self.nearest[frame] = (value, others[index])
