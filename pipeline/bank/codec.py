"""How a frame's keys and values become bytes, and back: as they are, or smaller.

FP8 and INT8 keep one float32 scale for each of (key or value, layer, head): the largest magnitude
there over the largest number of the small type.
"""

from dataclasses import dataclass
from typing import Protocol

import torch


class Codec(Protocol):
    def record_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of one frame [2, layers, tokens, heads, head_dim]."""

    def encode(self, kv: torch.Tensor) -> torch.Tensor:
        """[2, layers, tokens, heads, head_dim] to a record of bytes, on the same device."""

    def decode(self, record: torch.Tensor, out: torch.Tensor) -> None:
        """Write a record's keys and values into `out` [2, layers, tokens, heads, head_dim]."""


@dataclass(frozen=True)
class Plain:
    """The numbers in a floating-point type of their own."""

    dtype: torch.dtype

    def record_bytes(self, shape: tuple[int, ...]) -> int:
        return torch.Size(shape).numel() * self.dtype.itemsize

    def encode(self, kv: torch.Tensor) -> torch.Tensor:
        return kv.to(self.dtype).contiguous().view(torch.uint8).flatten()

    def decode(self, record: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(record.view(self.dtype).view(out.shape))


@dataclass(frozen=True)
class Scaled:
    """Eight-bit numbers with a scale for each head."""

    dtype: torch.dtype

    def record_bytes(self, shape: tuple[int, ...]) -> int:
        return torch.Size(shape).numel() + torch.Size(self._scale_shape(shape)).numel() * 4

    def encode(self, kv: torch.Tensor) -> torch.Tensor:
        largest = torch.finfo(self.dtype).max if self.dtype.is_floating_point else torch.iinfo(self.dtype).max
        scale = kv.abs().amax(dim=(-3, -1), keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny) / largest
        small = torch.empty(kv.shape, dtype=self.dtype, device=kv.device)
        for layer in range(kv.shape[1]):  # float32 copies of all layers at once would take several frames' memory
            part = kv[:, layer] / scale[:, layer]
            small[:, layer] = part if self.dtype.is_floating_point else part.round_()
        return torch.cat([small.view(torch.uint8).flatten(), scale.view(torch.uint8).flatten()])

    def decode(self, record: torch.Tensor, out: torch.Tensor) -> None:
        small, scale = record[: out.numel()], record[out.numel() :]
        scale = scale.view(torch.float32).view(self._scale_shape(out.shape))
        small = small.view(self.dtype).view(out.shape)
        for layer in range(out.shape[1]):
            out[:, layer] = small[:, layer].float() * scale[:, layer]

    def _scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        two, layers, _, heads, _ = shape
        return two, layers, 1, heads, 1


def build_codec(storage: str, dtype: torch.dtype) -> Codec:
    """A codec by its name in `STORAGES`; `same` keeps the model's own `dtype`."""
    return STORAGES[storage] or Plain(dtype)


STORAGES: dict[str, Codec | None] = {
    "same": None,
    "bfloat16": Plain(torch.bfloat16),
    "fp8": Scaled(torch.float8_e4m3fn),
    "int8": Scaled(torch.int8),
}
