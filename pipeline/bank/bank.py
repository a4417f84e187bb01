"""The bank: keys and values of the frames that left the window, in tiers of storage, each with a budget.

A frame is kept as one record of bytes per sample (`codec.py`). New frames enter the first tier; as it
fills, the least recently used move down a tier, and come up again when they are retrieved.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pipeline.bank.codec import Codec, build_codec
from pipeline.bank.eviction import EVICTIONS, BankState, EvictionRule, fifo
from pipeline.bank.settings import BankSettings
from pipeline.bank.tiers import DiskTier, RamTier, Tier
from pipeline.retrieval import Index
from utils.errors import UserError


@dataclass
class TransferStats:
    """What moved into, out of and between tiers: copies of records, their bytes, and the frames dropped."""

    copies: int = 0
    bytes: int = 0
    dropped: list[int] = field(default_factory=list)

    def count(self, size: int) -> None:
        self.copies += 1
        self.bytes += size


class Bank:
    """Frames outside the window; a frame is in exactly one tier.

    Args:
        tiers: from fast to slow.
        codec: how keys and values become bytes.
        capacity: frames kept at most; None keeps all.
        rule: which frame goes when the bank is full.
        index: the retrieval index, asked which frames are similar and told which are dropped.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        codec: Codec,
        capacity: int | None = None,
        rule: EvictionRule = fifo,
        index: Index | None = None,
    ) -> None:
        self.tiers = [tier for tier in tiers if tier.slots]
        self.codec, self.capacity, self.rule, self.index = codec, capacity, rule, index
        self.slots: list[OrderedDict[int, int]] = [OrderedDict() for _ in self.tiers]  # frame -> slot, oldest use first
        self.free: list[list[int]] = [list(range(tier.slots))[::-1] for tier in self.tiers]
        self.frames: list[int] = []  # all that are kept, oldest first
        self.seen = 0
        self.transfers = TransferStats()
        self.frame_bytes = 0

    def __contains__(self, frame: int) -> bool:
        return any(frame in slots for slots in self.slots)

    @property
    def tier_bytes(self) -> dict[str, int]:
        """Bytes in use by tier."""
        return {tier.name: len(slots) * self.frame_bytes for tier, slots in zip(self.tiers, self.slots, strict=True)}

    def available(self, frames: range) -> list[int]:
        """Those of the frames that are kept, in order."""
        return [frame for frame in self.frames if frame in frames]

    def put(self, frames: Sequence[int], kv: torch.Tensor) -> None:
        """Keep `kv` [n, B, 2 (key, value), layers, tokens, heads, head_dim], keys unrotated, as those frames."""
        for frame, content in zip(frames, kv, strict=True):
            self.seen += 1
            if len(self.frames) == self.capacity and self._make_room(frame) == frame:
                continue
            records = [self.codec.encode(sample) for sample in content]
            self.frame_bytes = sum(record.nbytes for record in records)
            self._insert(0, frame, records)
            self.frames.append(frame)

    def put_back(self, frame: int, records: torch.Tensor) -> None:
        """Keep a frame's records [B, record_bytes] as they were in another bank."""
        self.frame_bytes = records.nbytes
        self._insert(0, frame, records)

    def fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        """Copy a sample's frame into `out` [2, layers, tokens, heads, head_dim]."""
        level = next(level for level, slots in enumerate(self.slots) if frame in slots)
        if level:
            self._raise(frame, level)
        else:
            self.slots[0].move_to_end(frame)
        tier, slot = self.tiers[0], self.slots[0][frame]
        record = tier.read(slot)[sample]
        self.transfers.count(record.nbytes)
        self.codec.decode(record.to(out.device, non_blocking=True), out)
        tier.mark(slot)

    def pop_transfers(self) -> TransferStats:
        """What moved since this was last asked."""
        taken, self.transfers = self.transfers, TransferStats()
        return taken

    def _raise(self, frame: int, level: int) -> None:
        """Move a retrieved frame up to the first tier."""
        tier, slot = self.tiers[level], self.slots[level][frame]
        records = tier.read(slot)
        if not tier.by_host:  # the frame that makes room may come to this very slot
            device = getattr(self.tiers[0], "device", "cpu")
            records = records.to(device, non_blocking=True, copy=True)
        self._remove(frame)
        self._insert(0, frame, records)
        tier.mark(slot)

    def _make_room(self, new: int) -> int:
        """Drop the frame that the rule names, which may be the new one; returns it."""
        pair = self.index.most_similar_pair if self.index is not None else None
        victim = self.rule(BankState(self.frames, new, self.seen, pair))
        if victim != new:
            self._remove(victim)
            self.frames.remove(victim)
        self.transfers.dropped.append(victim)
        if self.index is not None:
            self.index.drop(victim)
        return victim

    def _remove(self, frame: int) -> None:
        """Free a frame's slot."""
        for slots, free in zip(self.slots, self.free, strict=True):
            if frame in slots:
                free.append(slots.pop(frame))

    def _insert(self, level: int, frame: int, records: Sequence[torch.Tensor] | torch.Tensor) -> None:
        """Put a frame's records into a tier; the least recently used frame of a full one moves down."""
        if level == len(self.tiers):
            raise UserError(
                f"the bank's tiers are full at latent frame {frame}; raise bank.host_gb or bank.disk_gb, "
                "or set bank.capacity to bound what is kept"
            )
        slots, free = self.slots[level], self.free[level]
        tier = self.tiers[level]
        if not free:
            oldest, slot = next(iter(slots.items()))
            if level + 1 < len(self.tiers) and self.tiers[level + 1].by_host:
                tier.wait(slot)  # the host itself reads the slot, and writes it if the new frame comes from there
            self._insert(level + 1, oldest, tier.read(slot))
            del slots[oldest]
            free.append(slot)
        slots[frame] = free.pop()
        tier.write(slots[frame], records)
        self.transfers.count(self.frame_bytes)


@dataclass(frozen=True)
class Shares:
    """How many of the frames that a run keeps lie in each tier, and the bytes of one frame."""

    kept: int
    device: int
    host: int
    disk: int
    frame_bytes: int

    @property
    def lacking(self) -> int:
        return self.kept - self.device - self.host - self.disk


def share_out(settings: BankSettings, frame_bytes: int, leaving: int, device_bytes: int) -> Shares:
    """Divide the frames that will leave the window among the tiers, by their budgets.

    Args:
        frame_bytes: of one frame's records.
        leaving: frames that leave the window during the run.
        device_bytes: budget on the device.
    """
    kept = min(leaving, settings.capacity or leaving)
    device = min(kept, device_bytes // frame_bytes)
    host = kept - device
    if settings.host_gb is not None:
        host = min(host, int(settings.host_gb * 1e9) // frame_bytes)
    disk = min(kept - device - host, int(settings.disk_gb * 1e9) // frame_bytes)
    return Shares(kept, device, host, disk, frame_bytes)


def build_bank(
    settings: BankSettings,
    index: Index,
    frame: tuple[int, ...],
    leaving: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    device_bytes: int | None = None,
) -> Bank:
    """The bank that the settings describe.

    Args:
        index: the generation's retrieval index.
        frame: shape of a frame's keys and values, [B, 2, layers, tokens, heads, head_dim].
        leaving: how many frames will leave the window during the run.
        device_bytes: budget on the device; None for the one of the settings.

    Raises:
        UserError: the budgets hold fewer frames than the run keeps.
    """
    codec = build_codec(settings.storage, dtype)
    records = (frame[0], codec.record_bytes(frame[1:]))
    if device_bytes is None:
        device_bytes = int(settings.device_gb * 1e9)
    shares = share_out(settings, records[0] * records[1], leaving, device_bytes)
    if shares.lacking:
        raise UserError(
            f"bank: the budgets hold {shares.device} + {shares.host} + {shares.disk} latent frames (device, host, "
            f"disk) of {shares.frame_bytes / 1e6:.1f} MB and the run keeps {shares.kept}; raise bank.host_gb or "
            "bank.disk_gb, or set bank.capacity"
        )
    device = torch.device(device)
    pin = device.type == "cuda"
    host = RamTier("host", shares.host, pin=pin, shape=records, gpu=device)
    tiers: list[Tier] = [RamTier("device", shares.device, device), host]
    if shares.disk:
        tiers.append(DiskTier(shares.disk, records, settings.disk_folder, pin))
    return Bank(tiers, codec, settings.capacity, EVICTIONS[settings.eviction], index)
