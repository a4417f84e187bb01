"""The bank of frames outside the window: its settings, and which frame goes when it is full.

Rules are bookkeeping on frame numbers, no tensors; likeness is a question to the retrieval index.
To add a rule, write a function and name it in `EVICTIONS`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.errors import UserError
from utils.settings import require_choice


@dataclass(frozen=True)
class BankConfig:
    """The memory of frames outside the window.

    Attributes:
        device_gb, host_gb, disk_gb: budget of each tier; host_gb null takes what the run needs.
        disk_folder: where the disk tier's file is made; null for the system's folder of temporary files.
        storage: same (the model's type), bfloat16, fp8 or int8; see `pipeline.codec`.
        capacity: frames kept at most; null keeps all.
        eviction: which frame goes when the bank is full, a name in `EVICTIONS`.
    """

    device_gb: float = 0.0
    host_gb: float | None = None
    disk_gb: float = 0.0
    disk_folder: str | None = None
    storage: str = "same"
    capacity: int | None = None
    eviction: str = "fifo"

    def __post_init__(self) -> None:
        require_choice("bank.storage", self.storage, ("same", "bfloat16", "fp8", "int8"))
        require_choice("bank.eviction", self.eviction, EVICTIONS)
        if min(self.device_gb, self.host_gb or 0, self.disk_gb) < 0:
            raise UserError("bank.device_gb, bank.host_gb and bank.disk_gb cannot be negative")
        if self.capacity is not None and self.capacity < 1:
            raise UserError(f"bank.capacity is {self.capacity}; it must be at least 1, or null to keep every frame")


@dataclass(frozen=True)
class Full:
    """A full bank to which one more frame comes.

    Attributes:
        held: the frames in it, oldest first.
        new: the frame that comes.
        seen: how many frames have come so far, the new one included.
        most_alike: frames -> the two of them that are most alike.
    """

    held: Sequence[int]
    new: int
    seen: int
    most_alike: Callable[[Sequence[int]], tuple[int, int]]


def fifo(bank: Full) -> int:
    """The oldest frame goes."""
    return bank.held[0]


def reservoir(bank: Full) -> int:
    """Every frame so far is kept with the same chance (Vitter, ACM TOMS 11, 1985)."""
    slot = random.Random(bank.new).randrange(bank.seen)
    return bank.held[slot] if slot < len(bank.held) else bank.new


def redundancy(bank: Full) -> int:
    """Of the two frames that are most alike, the older one goes."""
    return min(bank.most_alike([*bank.held, bank.new]))


EVICTIONS = {"fifo": fifo, "reservoir": reservoir, "redundancy": redundancy}
