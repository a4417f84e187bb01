"""A second queue of GPU work beside the current one; on a CPU everything simply happens in order."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


class SideStream:
    """Work that need not wait for what the current stream is told to do next.

    Args:
        purpose: side streams of one purpose are the same stream.
    """

    def __init__(self, device: torch.device | str, purpose: str) -> None:
        device = torch.device(device)
        self.stream = _stream(device, purpose) if device.type == "cuda" else None

    def use_device(self) -> None:
        """Make the stream's device this thread's current one."""
        if self.stream is not None:
            torch.cuda.set_device(self.stream.device)

    def after_now(self) -> AbstractContextManager:
        """A block of work that starts when everything queued on the current stream so far is done."""
        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        return torch.cuda.stream(self.stream)

    def join(self) -> None:
        """Make the current stream wait for the side stream's work."""
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


@cache
def _stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """One for the whole process: memory that was freed on a stream is used again on that stream only."""
    return torch.cuda.Stream(device)
