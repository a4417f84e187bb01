"""Keys and values of frames that left the window, kept for retrieval."""

from collections.abc import Sequence
from typing import Protocol

import torch


class FrameMemory(Protocol):
    """Where the key/value cache puts frames and fetches them from.

    A frame's tensor is [B, 2 (key, value), layers, tokens, heads, head_dim], keys unrotated.
    """

    @property
    def nbytes(self) -> int:
        """Bytes in use."""

    def put(self, frames: Sequence[int], kv: torch.Tensor) -> None:
        """Keep `kv` [n, B, 2, layers, tokens, heads, head_dim] as the content of `frames`."""

    def fetch(self, frames: Sequence[Sequence[int]], out: torch.Tensor) -> None:
        """Copy each sample's frames into `out` [B, K, 2, layers, tokens, heads, head_dim]."""


class HostMemory:
    """Every frame in host memory, pinned where the copies go to a GPU."""

    def __init__(self, pin: bool = False) -> None:
        self.pin = pin
        self.frames: dict[int, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        return sum(kv.nbytes for kv in self.frames.values())

    def put(self, frames: Sequence[int], kv: torch.Tensor) -> None:
        for frame, content in zip(frames, kv, strict=True):
            host = torch.empty(content.shape, dtype=content.dtype, pin_memory=self.pin)
            host.copy_(content)
            self.frames[frame] = host

    def fetch(self, frames: Sequence[Sequence[int]], out: torch.Tensor) -> None:
        for sample, chosen in enumerate(frames):
            for slot, frame in enumerate(chosen):
                out[sample, slot].copy_(self.frames[frame][sample], non_blocking=self.pin)
