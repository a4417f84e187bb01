"""Retrieval: what describes a frame, and which frames a description selects.

Two tables hold the choices. `DESCRIPTORS` turn a frame's clean latent into a vector;
`SELECTIONS` pick among the candidates. To add one, write a small class and name it there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """k candidates at random, the same ones whenever the candidates are the same."""
    generator = torch.Generator().manual_seed(len(frames))
    return torch.randperm(len(frames), generator=generator)[:k].tolist()


SELECTIONS = {"similarity": most_similar, "recency": most_recent, "uniform": uniform, "random": random}


@dataclass
class Retrieval:
    """The index of one generation: descriptors of the finished frames, and who is selected among them."""

    descriptor: Descriptor
    rule: SelectionRule = most_similar
    descriptors: list[torch.Tensor] = field(default_factory=list)  # a block each, [B, F, D] float32

    def add(self, latents: torch.Tensor) -> None:
        """Index the clean latents [B, F, C, H, W] of the frames that follow the last ones."""
        self.descriptors.append(self.descriptor(latents))

    def select(self, candidates: range, k: int) -> Selection:
        """Choose min(k, len(candidates)) of the candidate frames for each sample.

        The query is the descriptor of the last finished frame.
        """
        index = torch.cat(self.descriptors, dim=1)  # [B, frames so far, D]
        self.descriptors = [index]
        pool = F.normalize(index[:, candidates.start : candidates.stop], dim=-1)
        similarities = torch.einsum("b n d, b d -> b n", pool, F.normalize(index[:, -1], dim=-1)).cpu()
        chosen = [self.rule(row, candidates, k) for row in similarities]
        return Selection(
            query_frame=index.shape[1],
            frames=tuple(tuple(candidates[i] for i in row) for row in chosen),
            similarities=tuple(tuple(similarities[b, row].tolist()) for b, row in enumerate(chosen)),
        )
