"""Keys and values of frames that left the window: tiers of storage, each with a budget, behind one interface.

A frame is stored as one record of bytes per sample (`codec.py`). New frames enter the first tier;
as it fills, the least recently used move down a tier, and come up again when they are retrieved.
"""

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipeline.bank import EVICTIONS, BankConfig, Full
from pipeline.codec import Codec, build_codec
from pipeline.retrieval import Retrieval
from utils.errors import UserError

SLAB_BYTES = 1 << 32  # of device or host memory, made at once


class FrameMemory(Protocol):
    """Where the key/value cache puts frames and fetches them from; `frame in memory` says what it holds."""

    @property
    def tier_bytes(self) -> dict[str, int]:
        """Bytes in use by tier."""

    def __contains__(self, frame: int) -> bool: ...

    def held_of(self, frames: range) -> list[int]:
        """Those of the frames that it holds, in order."""

    def put(self, frames: Sequence[int], kv: torch.Tensor) -> None:
        """Keep `kv` [n, B, 2 (key, value), layers, tokens, heads, head_dim], keys unrotated, as those frames."""

    def fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        """Copy a sample's frame into `out` [2, layers, tokens, heads, head_dim]."""

    def take_traffic(self) -> "Traffic":
        """What moved since this was last asked."""


@dataclass
class Traffic:
    """What moved into, out of and between tiers: copies of records, their bytes, and the frames dropped."""

    copies: int = 0
    bytes: int = 0
    dropped: list[int] = field(default_factory=list)

    def count(self, record: torch.Tensor) -> None:
        self.copies += 1
        self.bytes += record.nbytes


class Tier(Protocol):
    """Numbered slots for one frame's records [B, record_bytes] each."""

    name: str
    slots: int

    def write(self, slot: int, records: torch.Tensor) -> None: ...

    def read(self, slot: int) -> torch.Tensor: ...


class RamTier:
    """Slots in device or host memory, made when first used; pinned host memory lets copies run beside the GPU.

    Slots are made in slabs: each allocation of its own would take up to twice a frame's size (PyTorch
    rounds pinned ones up to a power of two, the system's allocator scatters the others). Unpinned host
    memory is taken page by page, as slots are written.
    """

    def __init__(self, name: str, slots: int, device: torch.device | str = "cpu", pin: bool = False) -> None:
        self.name, self.slots, self.device, self.pin = name, slots, torch.device(device), pin
        self.slabs: dict[int, torch.Tensor] = {}  # [slots of a slab, B, record_bytes]
        self.per_slab = 1

    def write(self, slot: int, records: torch.Tensor) -> None:
        if not self.slabs:
            self.per_slab = min(max(SLAB_BYTES // records.nbytes, 1), self.slots)
        slab = slot // self.per_slab
        if slab not in self.slabs:
            shape = (min(self.per_slab, self.slots - slab * self.per_slab), *records.shape)
            self.slabs[slab] = torch.empty(shape, dtype=torch.uint8, device=self.device, pin_memory=self.pin)
        self.read(slot).copy_(records, non_blocking=self.pin)

    def read(self, slot: int) -> torch.Tensor:
        return self.slabs[slot // self.per_slab][slot % self.per_slab]


class DiskTier:
    """Slots in one preallocated file.

    The file has no name from the moment it is open: it cannot be deleted under a run, and vanishes
    with the process, however that ends. It is read and written rather than mapped, so that resident
    memory stays flat and a failing disk is an error, not a crash.
    """

    def __init__(self, slots: int, shape: tuple[int, int], folder: str | None = None) -> None:
        self.name, self.slots, self.shape = "disk", slots, shape
        self.size = shape[0] * shape[1]
        folder = folder or tempfile.gettempdir()
        try:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the tier)
            os.posix_fallocate(self.file.fileno(), 0, slots * self.size)
        except OSError as error:
            raise UserError(
                f"bank.disk_folder {folder} cannot hold {slots * self.size / 1e9:.1f} GB ({error.strerror}); "
                "lower bank.disk_gb or name another folder"
            ) from error

    def write(self, slot: int, records: torch.Tensor) -> None:
        if torch.cuda.is_initialized():  # the records may still be on their way to host memory
            torch.cuda.synchronize()
        self._move(os.pwritev, records.cpu().contiguous(), slot)

    def read(self, slot: int) -> torch.Tensor:
        records = torch.empty(self.shape, dtype=torch.uint8)
        self._move(os.preadv, records, slot)
        return records

    def _move(self, transfer: Callable, records: torch.Tensor, slot: int) -> None:
        view, done = memoryview(records.numpy()).cast("B"), 0
        while done < self.size:
            try:
                moved = transfer(self.file.fileno(), [view[done:]], slot * self.size + done)
            except OSError as error:
                raise UserError(f"the disk tier failed ({error.strerror}); the run cannot go on") from error
            if not moved:
                raise UserError("the disk tier's file is shorter than it was; the run cannot go on")
            done += moved


class TieredMemory:
    """Frames in the tiers given, first tier first.

    Args:
        tiers: from fast to slow; a frame is in exactly one of them.
        codec: how keys and values become bytes.
    """

    def __init__(self, tiers: Sequence[Tier], codec: Codec) -> None:
        self.tiers, self.codec = [tier for tier in tiers if tier.slots], codec
        self.held: list[OrderedDict[int, int]] = [OrderedDict() for _ in self.tiers]  # frame -> slot, oldest use first
        self.free: list[list[int]] = [list(range(tier.slots))[::-1] for tier in self.tiers]
        self.traffic = Traffic()
        self.records_bytes = 0

    @property
    def tier_bytes(self) -> dict[str, int]:
        return {tier.name: len(held) * self.records_bytes for tier, held in zip(self.tiers, self.held, strict=True)}

    def __contains__(self, frame: int) -> bool:
        return any(frame in held for held in self.held)

    def held_of(self, frames: range) -> list[int]:
        return sorted(frame for held in self.held for frame in held if frame in frames)

    def put(self, frames: Sequence[int], kv: torch.Tensor) -> None:
        for frame, content in zip(frames, kv, strict=True):
            records = torch.stack([self.codec.encode(sample) for sample in content])
            self.records_bytes = records.nbytes
            self._insert(0, frame, records)

    def fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        level = next(level for level, held in enumerate(self.held) if frame in held)
        records = self.tiers[level].read(self.held[level][frame])
        if level:  # retrieved frames come up
            device = getattr(self.tiers[0], "device", "cpu")
            records = records.to(device, non_blocking=True, copy=True)
            self.drop([frame])
            self._insert(0, frame, records)
        else:
            self.held[0].move_to_end(frame)
        self.traffic.count(records[sample])
        self.codec.decode(records[sample].to(out.device, non_blocking=True), out)

    def take_traffic(self) -> Traffic:
        taken, self.traffic = self.traffic, Traffic()
        return taken

    def drop(self, frames: Collection[int]) -> None:
        """Forget frames; their slots are free again."""
        for held, free in zip(self.held, self.free, strict=True):
            free.extend(held.pop(frame) for frame in frames if frame in held)

    def _insert(self, level: int, frame: int, records: torch.Tensor) -> None:
        if level == len(self.tiers):
            raise UserError(
                f"the memory's tiers are full at latent frame {frame}; raise bank.host_gb or bank.disk_gb, "
                "or set bank.capacity to bound what is kept"
            )
        held, free = self.held[level], self.free[level]
        if not free:  # the least recently used frame moves down
            oldest, slot = next(iter(held.items()))
            self._insert(level + 1, oldest, self.tiers[level].read(slot))
            del held[oldest]
            free.append(slot)
        held[frame] = free.pop()
        self.tiers[level].write(held[frame], records)
        self.traffic.count(records)


class BoundedMemory:
    """At most `capacity` frames of another memory.

    Args:
        rule: which frame goes, from `pipeline.bank.EVICTIONS`.
        index: the retrieval index, asked which frames are alike and told what is dropped.
    """

    def __init__(self, memory: TieredMemory, capacity: int, rule: Callable[[Full], int], index: Retrieval) -> None:
        self.memory, self.capacity, self.rule, self.index = memory, capacity, rule, index
        self.held: list[int] = []
        self.seen = 0

    @property
    def tier_bytes(self) -> dict[str, int]:
        return self.memory.tier_bytes

    def take_traffic(self) -> Traffic:
        return self.memory.take_traffic()

    def __contains__(self, frame: int) -> bool:
        return frame in self.memory

    def held_of(self, frames: range) -> list[int]:
        return self.memory.held_of(frames)

    def put(self, frames: Sequence[int], kv: torch.Tensor) -> None:
        for index, frame in enumerate(frames):
            self.seen += 1
            goes = None
            if len(self.held) == self.capacity:
                goes = self.rule(Full(self.held, frame, self.seen, self.index.most_alike))
                self.memory.drop([goes])
                self.memory.traffic.dropped.append(goes)
                self.index.drop(goes)
            self.held = [kept for kept in (*self.held, frame) if kept != goes]
            if frame != goes:
                self.memory.put([frame], kv[index : index + 1])

    def fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        self.memory.fetch(frame, sample, out)


def build_memory(
    config: BankConfig,
    index: Retrieval,
    shape: tuple[int, ...],
    frames: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> TieredMemory | BoundedMemory:
    """The memory that a config describes.

    Args:
        index: the generation's retrieval index.
        shape: of a frame's keys and values, [B, 2, layers, tokens, heads, head_dim].
        frames: how many will leave the window during the run.

    Raises:
        UserError: the budgets hold fewer frames than the run keeps.
    """
    codec = build_codec(config.storage, dtype)
    records = (shape[0], codec.record_bytes(shape[1:]))
    size = records[0] * records[1]
    kept = min(frames, config.capacity or frames)
    on_device, on_disk = (min(int(budget * 1e9) // size, kept) for budget in (config.device_gb, config.disk_gb))
    on_host = kept - on_device
    if config.host_gb is not None:
        on_host = min(int(config.host_gb * 1e9) // size, on_host)
    if on_device + on_host + on_disk < kept:
        raise UserError(
            f"bank: the budgets hold {on_device} + {on_host} + {on_disk} latent frames (device, host, disk) of "
            f"{size / 1e6:.1f} MB and the run keeps {kept}; raise bank.host_gb or bank.disk_gb, or set bank.capacity"
        )
    pin = torch.device(device).type == "cuda"
    tiers: list[Tier] = [RamTier("device", on_device, device), RamTier("host", on_host, pin=pin)]
    on_disk = min(on_disk, kept - on_device - on_host)
    if on_disk:
        tiers.append(DiskTier(on_disk, records, config.disk_folder))
    memory = TieredMemory(tiers, codec)
    return BoundedMemory(memory, config.capacity, EVICTIONS[config.eviction], index) if config.capacity else memory
