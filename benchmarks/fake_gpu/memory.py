"""Who uses which memory when: finds uses in no order, and memory given back too early."""

import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product

import torch

from benchmarks.fake_gpu.order import Moment, Order

HOST = "host"
MOST_RUNS = 4096  # of a view's contiguous pieces; beyond, its whole extent stands for it
MOST_USES = 64  # remembered for each storage
LARGE = 1 << 20  # bytes: the allocator keeps pieces above and below it apart

Runs = list[tuple[int, int]]  # ranges of bytes within a storage, in order


@dataclass
class Use:
    """An operation that read or wrote a part of a storage."""

    stream: str
    count: int  # of the stream's operations
    writes: bool
    runs: Runs
    site: str


@dataclass
class Freed:
    """Memory in the pool of its stream that other streams may still use."""

    size: int
    uses: list[Use]


class Memory:
    """All storages that live on the GPU or are pinned.

    Attributes:
        faults: what was found, each with how often.
        live, peak: bytes on the GPU, now and at most.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.uses: dict[int, list[Use]] = {}
        self.owners: dict[int, tuple[str, int]] = {}  # storage on the GPU -> stream that made it, bytes
        self.pinned: set[int] = set()
        self.recorded: dict[int, set[str]] = defaultdict(set)  # storage -> streams named to record_stream
        self.pools: dict[str, list[Freed]] = defaultdict(list)
        self.faults: Counter = Counter()
        self.live = self.peak = 0

    def is_pinned(self, x: torch.Tensor) -> bool:
        return key(x) in self.pinned

    def watches(self, x: torch.Tensor) -> bool:
        return x.device.type == "cuda" or self.is_pinned(x)

    def pin(self, x: torch.Tensor) -> None:
        if key(x) not in self.pinned:
            self.pinned.add(key(x))
            self._follow(x)

    def make(self, x: torch.Tensor, stream: str, site: str) -> int:
        """Note a new storage on the GPU; returns its bytes, 0 if it is known."""
        if key(x) in self.owners:
            return 0
        size = x.untyped_storage().nbytes()
        self.owners[key(x)] = (stream, size)
        self._follow(x)
        self._check_pool(stream, size, site)
        self.live += size
        self.peak = max(self.peak, self.live)
        return size

    def use(self, stream: str, moment: Moment, x: torch.Tensor, writes: bool, site: str) -> None:
        """An operation of a stream, or of the host, that is done at `moment` reads or writes a tensor."""
        if not self.watches(x):
            return
        now = Use(stream, moment.get(stream, 0), writes, runs_of(x), site)
        kept = []
        for past in self.uses.setdefault(key(x), []):
            in_order = past.stream == stream or self._is_over(past, moment)
            if not in_order and (writes or past.writes) and overlap(now.runs, past.runs):
                self.faults[
                    f"race: {stream} {'writes' if writes else 'reads'} at {site} what {past.stream} "
                    f"{'writes' if past.writes else 'reads'} at {past.site}, in no order"
                ] += 1
            replaced = past.stream == stream and writes and past.runs == now.runs
            if not replaced:
                kept.append(past)
        kept.append(now)
        self.uses[key(x)] = kept[-MOST_USES:]

    def _is_over(self, past: Use, moment: Moment) -> bool:
        if past.stream == HOST:  # the host asks for one thing after another
            return True
        if self.order.host().get(past.stream, 0) >= past.count:
            return True
        return moment.get(past.stream, 0) >= past.count

    def _follow(self, x: torch.Tensor) -> None:
        if key(x) not in self.uses:
            self.uses[key(x)] = []
            weakref.finalize(x.untyped_storage(), self._free, key(x))

    def _free(self, storage: int) -> None:
        uses = self.uses.pop(storage, [])
        recorded = self.recorded.pop(storage, set())
        self.pinned.discard(storage)
        if storage not in self.owners:
            return
        stream, size = self.owners.pop(storage)
        self.live -= size
        others = []
        for use in uses:
            is_foreign = use.stream not in (stream, HOST) and use.stream not in recorded
            if is_foreign and self.order.finished.get(use.stream, 0) < use.count:
                others.append(use)
        if others:
            self.pools[stream].append(Freed(size, others))

    def _check_pool(self, stream: str, size: int, site: str) -> None:
        """A new piece on a stream may be one that was freed there: is every other stream's use of that over?"""
        moment = self.order.clock(stream)
        waiting = []
        for freed in self.pools[stream]:
            freed.uses = [use for use in freed.uses if not self.order.is_before(use.stream, use.count, moment)]
            if not freed.uses:
                continue
            waiting.append(freed)
            if size <= freed.size and (size > LARGE or freed.size < LARGE):
                use = freed.uses[0]
                self.faults[f"allocator: {site} on {stream} may get memory that {use.stream} uses at {use.site}"] += 1
        self.pools[stream] = waiting


def key(x: torch.Tensor) -> int:
    """The identity of a tensor's storage."""
    return x.untyped_storage()._cdata


def runs_of(x: torch.Tensor) -> Runs:
    """The ranges of bytes that a view covers in its storage."""
    if x.numel() == 0:
        return []
    item = x.dtype.itemsize
    start = x.storage_offset()
    run = 1
    outer = []
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1 or stride == 0:
            continue
        if stride == run and not outer:
            run *= size
        else:
            outer.append(range(0, stride * size, stride))
    count = 1
    for steps in outer:
        count *= len(steps)
    if count > MOST_RUNS:
        end = start + run + sum(steps[-1] for steps in outer)
        return [(start * item, end * item)]
    firsts = sorted(start + sum(steps) for steps in product(*outer))
    return [(first * item, (first + run) * item) for first in firsts]


def overlap(a: Runs, b: Runs) -> bool:
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i][0] < b[j][1] and b[j][0] < a[i][1]:
            return True
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return False
