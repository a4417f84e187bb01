"""What runs before what: a clock of counters for each stream, and what each thread of the host has waited for."""

import threading
from contextlib import contextmanager

Moment = dict[str, int]  # stream -> how many of its operations are done


def merge(into: Moment, other: Moment) -> None:
    """Let what is done at `other` be done at `into`."""
    for stream, count in other.items():
        into[stream] = max(into.get(stream, 0), count)


class Order:
    """Streams by name, each with what must be done before its next operation starts.

    Attributes:
        clocks: stream -> the moment at which its next operation starts.
        finished: what some thread of the host has waited for.
    """

    def __init__(self) -> None:
        self.clocks: dict[str, Moment] = {}
        self.finished: Moment = {}
        self.threads = threading.local()

    def clock(self, stream: str) -> Moment:
        return self.clocks.setdefault(stream, {stream: 0})

    def host(self) -> Moment:
        """What this thread has waited for."""
        if not hasattr(self.threads, "host"):
            self.threads.host = {}
        return self.threads.host

    def inherit(self, host: Moment) -> None:
        """This thread was started by one that had waited for so much."""
        self.threads.host = dict(host)

    def snapshot(self, stream: str) -> Moment:
        return dict(self.clock(stream))

    def all_queued(self) -> Moment:
        found: Moment = {}
        for clock in list(self.clocks.values()):
            merge(found, clock)
        return found

    def wait(self, stream: str, moment: Moment) -> None:
        """The stream's next operation starts after the moment."""
        merge(self.clock(stream), moment)

    def host_waits(self, moment: Moment) -> None:
        merge(self.host(), moment)
        merge(self.finished, moment)

    def advance(self, stream: str) -> Moment:
        """Queue one operation on the stream; returns the moment at which it is done."""
        clock = self.clock(stream)
        merge(clock, self.host())  # what the host waited for before it asked
        clock[stream] += 1
        return clock

    def is_before(self, stream: str, count: int, moment: Moment) -> bool:
        """Whether a stream's operation is done at the moment, or was waited for by any thread."""
        return max(moment.get(stream, 0), self.finished.get(stream, 0)) >= count


class FakeStream:
    """Stands for `torch.cuda.Stream`."""

    def __init__(self, gpu, name: str | None = None, priority: int = 0) -> None:
        self.gpu, self.device, self.priority = gpu, gpu.device, priority
        self.name = name or gpu.next_stream_name()

    def wait_stream(self, other: "FakeStream") -> None:
        self.gpu.order.wait(self.name, self.gpu.order.snapshot(other.name))

    def wait_event(self, event: "FakeEvent") -> None:
        self.gpu.order.wait(self.name, event.moment)

    def record_event(self, event: "FakeEvent | None" = None) -> "FakeEvent":
        event = event or FakeEvent(self.gpu)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.gpu.host_waits("stream.synchronize", self.gpu.order.snapshot(self.name))

    def query(self) -> bool:
        return True


class FakeEvent:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, gpu, enable_timing: bool = False) -> None:
        self.gpu, self.enable_timing = gpu, enable_timing
        self.moment: Moment = {}

    def __deepcopy__(self, memo: dict) -> "FakeEvent":
        raise TypeError("cannot pickle 'Event' object")  # as the real one

    def record(self, stream: FakeStream | None = None) -> None:
        stream = stream or self.gpu.stream()
        self.moment = self.gpu.order.snapshot(stream.name)

    def wait(self, stream: FakeStream | None = None) -> None:
        self.gpu.order.wait((stream or self.gpu.stream()).name, self.moment)

    def synchronize(self) -> None:
        self.gpu.host_waits("event.synchronize", self.moment)

    def query(self) -> bool:
        """Whether it is known to be done: some thread waited for it, or for what comes after it."""
        return all(self.gpu.order.is_before(stream, count, {}) for stream, count in self.moment.items())

    def elapsed_time(self, later: "FakeEvent") -> float:
        assert self.enable_timing and later.enable_timing, "events without enable_timing have no time"
        return 1.0


@contextmanager
def current(gpu, stream: FakeStream | None):
    """Stands for `torch.cuda.stream`; a stream of None changes nothing."""
    before = gpu.stream()
    gpu.order.threads.stream = stream or before
    try:
        yield
    finally:
        gpu.order.threads.stream = before
