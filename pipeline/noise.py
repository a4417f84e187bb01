"""Where a generation's noise comes from."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from random import Random
from typing import Protocol

import torch

from utils.streams import make_ahead


class NoiseSource(Protocol):
    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise [B, F, C, H, W] on the CPU in float32 for a block; step 0 starts it, step i > 0 follows step i."""

    def rngs(self, block: int) -> list[Random]:
        """A source of random choices for each sample of the batch, for a block."""


class SeededNoise:
    """Noise that depends on (seed, prompt index, sample index, block, step) and on nothing else.

    Batch, process, device, skipped samples and resumption leave it as it is: it is drawn on the
    CPU, each piece from a generator of its own.

    Args:
        seed: the run's seed.
        samples: (prompt index, sample index) of each sample of the batch.
    """

    def __init__(self, seed: int, samples: Sequence[tuple[int, int]]) -> None:
        self.seed, self.samples = seed, list(samples)

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        pieces = []
        for sample in self.samples:
            generator = torch.Generator().manual_seed(self._key(sample, block, str(step)))
            pieces.append(torch.randn(shape[1:], generator=generator))
        return torch.stack(pieces)

    def rngs(self, block: int) -> list[Random]:
        return [Random(self._key(sample, block, "choice")) for sample in self.samples]

    def _key(self, sample: tuple[int, int], block: int, purpose: str) -> int:
        prompt, number = sample
        name = f"{self.seed}/{prompt}/{number}/{block}/{purpose}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class NoiseAhead:
    """Draws each block's noise while the block before it is made, in a thread, into pinned memory.

    Args:
        source: whose noise it is; it must not matter to it in which order it is asked.
        device: the GPU that the noise goes to.
    """

    def __init__(self, source: SeededNoise, device: torch.device) -> None:
        self.source, self.device = source, device
        self.steps: dict[int, list[int]] = {}  # block -> its steps that were asked for
        self.drawn: dict[tuple[int, int], Future[torch.Tensor]] = {}  # (block, step) -> its noise

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        known = self.steps.get(block - 1, [])
        if step == 0:
            self._draw_ahead(block + 1, known, shape)
            self.steps = {block - 1: known, block: []}
        self.steps.setdefault(block, []).append(step)
        ahead = self.drawn.pop((block, step), None)
        return self._draw(block, step, shape) if ahead is None else ahead.result()

    def rngs(self, block: int) -> list[Random]:
        return self.source.rngs(block)

    def _draw_ahead(self, block: int, steps: Sequence[int], shape: tuple[int, ...]) -> None:
        """Draw the noise of a block's steps, those that the last whole block asked for."""
        kept = {}
        for key, future in self.drawn.items():
            if key[0] == block - 1:
                kept[key] = future
        makers = [partial(self._draw, block, step, shape) for step in steps]
        for step, future in zip(steps, make_ahead(self.device, makers), strict=True):
            kept[block, step] = future
        self.drawn = kept

    def _draw(self, block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self.source.draw(block, step, shape).pin_memory()


class RecordedNoise:
    """Noise of a recorded generation.

    Args:
        noise: [B, frames, C, H, W], what each block starts from.
        renoise: [draws, B * F, C, H, W], every later draw in order.
    """

    def __init__(self, noise: torch.Tensor, renoise: torch.Tensor) -> None:
        self.noise, self.renoise = noise, iter(renoise)

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        if step:
            return next(self.renoise).reshape(shape)
        return self.noise[:, block * shape[1] : (block + 1) * shape[1]].reshape(shape)

    def rngs(self, block: int) -> list[Random]:
        return [Random(block) for _ in range(len(self.noise))]
