"""Queues of GPU work beside the current one, and copies to the host; on a CPU everything simply happens in order."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


class Mark:
    """A moment of a stream: everything queued on it until then is done."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def __deepcopy__(self, memo: dict) -> "Mark":
        """The same moment; an event cannot be copied."""
        return self


class SideStream:
    """Work that need not wait for what the current stream is told to do next.

    Args:
        purpose: side streams of one purpose are the same stream.
    """

    def __init__(self, device: torch.device | str, purpose: str) -> None:
        device = torch.device(device)
        self.stream = _stream(device, purpose) if device.type == "cuda" else None

    def __deepcopy__(self, memo: dict) -> "SideStream":
        """The same stream, as there is one for each purpose."""
        return self

    def use_device(self) -> None:
        """Make the stream's device this thread's current one."""
        if self.stream is not None:
            torch.cuda.set_device(self.stream.device)

    def mark(self) -> Mark | None:
        """The moment at which everything queued on the current stream so far is done."""
        if self.stream is None:
            return None
        return Mark(torch.cuda.current_stream(self.stream.device).record_event())

    def after(self, mark: Mark | None) -> AbstractContextManager:
        """A block of work that starts at a moment; see `mark`."""
        if self.stream is None:
            return nullcontext()
        self.stream.wait_event(mark.event)
        return torch.cuda.stream(self.stream)

    def after_now(self) -> AbstractContextManager:
        """A block of work that starts when everything queued on the current stream so far is done."""
        return self.after(self.mark())

    def join(self) -> None:
        """Make the current stream wait for the side stream's work."""
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


class OnHost:
    """A tensor's copy in host memory, made beside the host's own work where the tensor lies on a GPU."""

    def __init__(self, x: torch.Tensor) -> None:
        self.event = None
        self.copy = x
        if x.device.type == "cuda":
            self.copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self.copy.copy_(x, non_blocking=True)
            self.event = torch.cuda.current_stream(x.device).record_event()

    def __deepcopy__(self, memo: dict) -> "OnHost":
        return OnHost(self.get().clone())

    def get(self) -> torch.Tensor:
        """The copy, waited for."""
        if self.event is not None:
            wait(self.event)
            self.event = None
        return self.copy


def wait(event: torch.cuda.Event) -> None:
    """Let the host wait for a moment, unless it has passed."""
    if not event.query():
        event.synchronize()


def make_ahead(device: torch.device, makers: Sequence[Callable[[], T]]) -> list[Future[T]]:
    """Call the makers in a thread, one after another, beside what this one does."""
    pool = ThreadPoolExecutor(1)
    made = [pool.submit(_make_on, device, maker) for maker in makers]
    pool.shutdown(wait=False)  # the thread ends with the last of them
    return made


def _make_on(device: torch.device, maker: Callable[[], T]) -> T:
    """Call it with the device as the thread's current one."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return maker()


@cache
def _stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """One for the whole process: memory that was freed on a stream is used again on that stream only."""
    return torch.cuda.Stream(device)
