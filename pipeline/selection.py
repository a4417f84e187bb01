"""Which of the candidate frames are retrieved, given how similar each is to the query: no tensors.

To add a rule, write a function and name it in `SELECTIONS`.
"""

from collections.abc import Sequence
from random import Random
from typing import Protocol


class SelectionRule(Protocol):
    def __call__(self, similarities: Sequence[float], frames: Sequence[int], k: int, rng: Random) -> list[int]:
        """Choose at most k of the candidates.

        Args:
            similarities: of each candidate to the query (cosine).
            frames: the candidates, in order.
            rng: of this video and block alone.

        Returns:
            indices into `frames`, best first.
        """


def most_similar(similarities: Sequence[float], frames: Sequence[int], k: int, rng: Random) -> list[int]:
    """The k nearest by cosine; equal similarities in the order of frames, so the outcome is always the same."""
    ranked = sorted(range(len(frames)), key=lambda i: -similarities[i])
    return ranked[:k]


def most_recent(similarities: Sequence[float], frames: Sequence[int], k: int, rng: Random) -> list[int]:
    """The k latest candidates, latest first."""
    return list(range(len(frames)))[::-1][:k]


def uniform(similarities: Sequence[float], frames: Sequence[int], k: int, rng: Random) -> list[int]:
    """k candidates spread evenly over the past, earliest first."""
    k = min(k, len(frames))
    return [(2 * i + 1) * len(frames) // (2 * k) for i in range(k)]


def at_random(similarities: Sequence[float], frames: Sequence[int], k: int, rng: Random) -> list[int]:
    """k candidates at random, drawn anew for every video and block."""
    return rng.sample(range(len(frames)), min(k, len(frames)))


def around(similarities: Sequence[float], frames: Sequence[int], k: int, rng: Random) -> list[int]:
    """The most similar candidate, then those 3, 6, ... frames after and before it, then more that are similar.

    The query is the last frame, so the most similar frames show what is in view already. What comes into view next
    lay beside it: after it in time where the camera repeats its way, before it where it goes back.
    """
    step = 3  # a block of the published backbones
    ranked = most_similar(similarities, frames, len(frames), rng)
    if not ranked:
        return []
    index = {frame: i for i, frame in enumerate(frames)}
    best = frames[ranked[0]]
    chosen = ranked[:1]
    for gap in range(step, step * k, step):
        for frame in (best + gap, best - gap):
            if frame in index:
                chosen.append(index[frame])
    return list(dict.fromkeys(chosen + ranked))[:k]


SELECTIONS: dict[str, SelectionRule] = {
    "similarity": most_similar,
    "recency": most_recent,
    "uniform": uniform,
    "random": at_random,
    "around": around,
}
