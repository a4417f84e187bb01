"""A second queue of GPU work beside the current one; on a CPU everything simply happens in order."""

from contextlib import AbstractContextManager, nullcontext

import torch


class SideStream:
    """Work that need not wait for what the current stream is told to do next."""

    def __init__(self, device: torch.device | str) -> None:
        device = torch.device(device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

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
