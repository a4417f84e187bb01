"""Settings of the bank of frames outside the window."""

from dataclasses import dataclass

from pipeline.bank.eviction import EVICTIONS
from utils.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class BankSettings(Settings):
    """Bank: keys and values of the frames outside the window"""

    device_gb: float = setting(0.0, "budget in GPU memory, in GB", at_least=0, at_most=1e6, place=True)
    host_gb: float | None = setting(
        None, "budget in host memory, in GB; null takes what the run needs", at_least=0, at_most=1e6, place=True
    )
    disk_gb: float = setting(0.0, "budget on disk, in GB", at_least=0, at_most=1e6, place=True)
    disk_folder: str | None = setting(
        None, "folder of the disk tier's file; null for the system's temporary one", place=True, writes=True
    )
    storage: str = setting(
        "same", "how numbers are kept; same is the model's own type", choices=("same", "bfloat16", "fp8", "int8")
    )
    capacity: int | None = setting(None, "frames kept at most; null keeps all", at_least=1)
    eviction: str = setting("fifo", "which frame goes when the bank is full", choices=EVICTIONS)
