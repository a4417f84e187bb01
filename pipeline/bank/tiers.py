"""Places for frames' records: device memory, host memory, disk."""

import os
import tempfile
from collections.abc import Callable
from typing import Protocol

import torch

from utils.errors import UserError

SLAB_BYTES = 1 << 32  # of device or host memory, made at once


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
            count = min(self.per_slab, self.slots - slab * self.per_slab)
            shape = (count, *records.shape)
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
