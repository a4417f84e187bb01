"""Places for frames' records: device memory, host memory, disk."""

import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Protocol

import torch

from utils.errors import UserError, first_line
from utils.streams import make_ahead, wait

SLAB_BYTES = 1 << 31  # of device or host memory, made at once; PyTorch rounds pinned memory up to a power of two


class Tier(Protocol):
    """Numbered slots for one frame's records [B, record_bytes] each.

    Attributes:
        by_host: the host itself reads what is written to the tier, and writes what is read.
    """

    name: str
    slots: int
    by_host: bool

    def write(self, slot: int, records: Iterable[torch.Tensor]) -> None:
        """Keep records, one for each sample."""

    def read(self, slot: int) -> torch.Tensor:
        """The records [B, record_bytes], as they are until the tier is read or written again."""

    def mark(self, slot: int) -> None:
        """What was read of the slot is used by copies that are queued now."""

    def wait(self, slot: int) -> None:
        """Wait until no queued copy uses the slot."""


class RamTier:
    """Slots in device or host memory; pinned host memory lets copies run beside the GPU.

    Slots are made in slabs: each allocation of its own would scatter. Pinned ones, which take the system a while,
    are made ahead in a thread; others when they are first used. Unpinned host memory is taken page by page, as
    slots are written.

    Args:
        shape: [B, record_bytes] of a slot, known ahead; None: that of the first records.
    """

    by_host = False

    def __init__(
        self,
        name: str,
        slots: int,
        device: torch.device | str = "cpu",
        pin: bool = False,
        shape: tuple[int, int] | None = None,
        gpu: torch.device | None = None,
    ) -> None:
        self.name, self.slots, self.device, self.pin, self.shape = name, slots, torch.device(device), pin, shape
        self.slabs: dict[int, torch.Tensor] = {}  # [slots of a slab, B, record_bytes]
        self.making: list[Future[torch.Tensor]] = []
        self.marks: dict[int, torch.cuda.Event] = {}  # slot -> when the copies queued for it are done
        if pin and slots and shape is not None:
            makers = []
            for first in range(0, slots, self.per_slab):
                makers.append(partial(self._make, min(self.per_slab, slots - first)))
            self.making = make_ahead(gpu, makers)

    @property
    def per_slab(self) -> int:
        return min(max(SLAB_BYTES // (self.shape[0] * self.shape[1]), 1), self.slots)

    def __deepcopy__(self, memo: dict) -> "RamTier":
        """A tier with the same content; what is queued for this one must be done."""
        twin = RamTier(self.name, self.slots, self.device, self.pin)
        twin.shape = self.shape
        for number, slab in self.slabs.items():
            twin.slabs[number] = torch.empty_like(slab, pin_memory=self.pin).copy_(slab)
        return twin

    def write(self, slot: int, records: Iterable[torch.Tensor]) -> None:
        rows = list(records)
        if self.shape is None:
            self.shape = (len(rows), rows[0].numel())
        target = self.read(slot)
        for row, record in zip(target, rows, strict=True):
            row.copy_(record, non_blocking=True)
        self.mark(slot)

    def read(self, slot: int) -> torch.Tensor:
        slab = slot // self.per_slab
        if slab not in self.slabs:
            self.slabs[slab] = self._slab(slab)
        return self.slabs[slab][slot % self.per_slab]

    def mark(self, slot: int) -> None:
        if self.pin:
            self.marks[slot] = torch.cuda.current_stream().record_event()

    def wait(self, slot: int) -> None:
        mark = self.marks.pop(slot, None)
        if mark is not None:
            wait(mark)

    def _slab(self, number: int) -> torch.Tensor:
        if not self.making:
            return self._make(min(self.per_slab, self.slots - number * self.per_slab))
        try:
            return self.making[number].result()
        except RuntimeError as error:
            raise UserError(
                f"the bank's {self.name} memory could not be pinned ({first_line(error)}); lower bank.host_gb, or set "
                "bank.storage: int8 or bank.capacity"
            ) from error

    def _make(self, slots: int) -> torch.Tensor:
        return torch.empty((slots, *self.shape), dtype=torch.uint8, device=self.device, pin_memory=self.pin)


class DiskTier:
    """Slots in one preallocated file.

    The file has no name from the moment it is open: it cannot be deleted under a run, and vanishes
    with the process, however that ends. It is read and written rather than mapped, so that resident
    memory stays flat and a failing disk is an error, not a crash.

    Args:
        pin: read into pinned memory, from which copies run beside the GPU.
    """

    by_host = True

    def __init__(self, slots: int, shape: tuple[int, int], folder: str | None = None, pin: bool = False) -> None:
        self.name, self.slots, self.shape, self.pin = "disk", slots, shape, pin
        self.size = shape[0] * shape[1]
        self.incoming: torch.Tensor | None = None  # what was read last
        self.copied: torch.cuda.Event | None = None  # when the copies out of it are done
        self.outgoing: torch.Tensor | None = None  # what is on its way from the GPU
        self.folder = folder = folder or tempfile.gettempdir()
        try:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the tier)
            os.posix_fallocate(self.file.fileno(), 0, slots * self.size)
        except OSError as error:
            raise UserError(
                f"bank.disk_folder {folder} cannot hold {slots * self.size / 1e9:.1f} GB ({error.strerror}); "
                "lower bank.disk_gb or name another folder"
            ) from error

    def __deepcopy__(self, memo: dict) -> "DiskTier":
        """A tier with the same content, in a file of its own."""
        twin = DiskTier(self.slots, self.shape, self.folder, self.pin)
        records = torch.empty(self.shape, dtype=torch.uint8)
        for slot in range(self.slots):
            self._move(os.preadv, records, slot * self.size)
            twin._move(os.pwritev, records, slot * self.size)
        return twin

    def write(self, slot: int, records: Iterable[torch.Tensor]) -> None:
        rows = list(records)
        if rows[0].device.type == "cuda":
            rows = self._to_host(rows)
        for place, record in enumerate(rows):
            self._move(os.pwritev, record.contiguous(), slot * self.size + place * self.shape[1])

    def read(self, slot: int) -> torch.Tensor:
        if self.incoming is None:
            self.incoming = self._buffer()
        if self.copied is not None:
            wait(self.copied)
            self.copied = None
        self._move(os.preadv, self.incoming, slot * self.size)
        return self.incoming

    def mark(self, slot: int) -> None:
        if self.pin:
            self.copied = torch.cuda.current_stream().record_event()

    def wait(self, slot: int) -> None:
        """The host itself moves what is in a slot."""

    def _to_host(self, rows: list[torch.Tensor]) -> torch.Tensor:
        if self.outgoing is None:
            self.outgoing = self._buffer()
        for target, record in zip(self.outgoing, rows, strict=True):
            target.copy_(record, non_blocking=True)
        torch.cuda.current_stream().record_event().synchronize()
        return self.outgoing

    def _buffer(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=torch.uint8, pin_memory=self.pin)

    def _move(self, transfer: Callable, records: torch.Tensor, offset: int) -> None:
        view = memoryview(records.numpy()).cast("B")
        done = 0
        while done < len(view):
            try:
                moved = transfer(self.file.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise UserError(f"the disk tier failed ({error.strerror}); the run cannot go on") from error
            if not moved:
                raise UserError("the disk tier's file is shorter than it was; the run cannot go on")
            done += moved
