"""What was done, counted by stream, place and kind; and what it would take at stated rates."""

from collections import Counter
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Card:
    """Rates that an estimate assumes: FLOP and bytes a second. They are assumptions, not measurements.

    Attributes:
        kernel_s: the least time of a kernel.
    """

    name: str = "H200"
    gemm: float = 650e12
    attention: float = 600e12
    convolution: float = 300e12
    memory: float = 4.0e12
    bus: float = 50e9
    kernel_s: float = 3e-6

    def seconds(self, kind: str, flop: int, moved: int) -> float:
        rate = {"gemm": self.gemm, "attention": self.attention, "convolution": self.convolution}.get(kind)
        work = flop / rate if rate else 0.0
        return max(self.kernel_s, work, moved / self.memory)


@dataclass
class Tally:
    """Counts of a part of a run.

    Attributes:
        kernels, kernel_bytes, seconds: by stream; seconds are an estimate.
        sites: line of the project -> bytes that its kernels read and wrote.
        site_kernels: the same, how many kernels.
        flop: by kind.
        copies, copy_bytes: by (direction, stream, how).
        waits: (what the host waited for, line of the project) -> how often.
        made, made_bytes: new pieces of memory on the GPU.
    """

    kernels: Counter = field(default_factory=Counter)
    kernel_bytes: Counter = field(default_factory=Counter)
    seconds: Counter = field(default_factory=Counter)
    kind_seconds: Counter = field(default_factory=Counter)
    sites: Counter = field(default_factory=Counter)
    site_kernels: Counter = field(default_factory=Counter)
    flop: Counter = field(default_factory=Counter)
    copies: Counter = field(default_factory=Counter)
    copy_bytes: Counter = field(default_factory=Counter)
    copy_sites: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    made: int = 0
    made_bytes: int = 0

    def kernel(self, card: Card, stream: str, site: str, kind: str, flop: int, moved: int) -> None:
        self.kernels[stream] += 1
        self.kernel_bytes[stream] += moved
        seconds = card.seconds(kind, flop, moved)
        self.seconds[stream] += seconds
        self.kind_seconds[kind] += seconds
        self.sites[site] += moved
        self.site_kernels[site] += 1
        if flop:
            self.flop[kind] += flop

    def copy(self, direction: str, stream: str, how: str, size: int, site: str) -> None:
        self.copies[direction, stream, how] += 1
        self.copy_bytes[direction, stream, how] += size
        self.copy_sites[direction, stream, how, site] += size

    def copied(self, direction: str, stream: str | None = None) -> int:
        """Bytes between host (H) and device (D), H2D or D2H, on one stream or on all."""
        total = 0
        for (way, on, _), size in self.copy_bytes.items():
            if way == direction and stream in (None, on):
                total += size
        return total


def moved_bytes(x: torch.Tensor) -> int:
    """Bytes that a kernel moves for a tensor: whole sectors of 32 bytes where its elements are scattered."""
    count = 1
    inner = None
    for stride, size in zip(x.stride(), x.shape, strict=True):
        if stride:
            count *= size
            if size > 1:
                inner = stride if inner is None else min(inner, stride)
    item = x.dtype.itemsize
    return count * min(item * (inner or 1), max(32, item))
