"""Seconds spent in each stage of a run."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Clock:
    """Adds up wall time by stage; waits for the GPU at a stage's end, so that work counts where it was asked for."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        self.seconds[stage] += time.perf_counter() - started

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on; the time it takes to produce each counts for `stage`."""
        iterator = iter(items)
        while True:
            with self(stage):
                item = next(iterator, self)
            if item is self:
                return
            yield item
