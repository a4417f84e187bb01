"""Which frames a block attends to, and at which temporal positions: integers only, no tensors.

A policy turns the index of a block's first frame into a `ContextPlan`; the key/value cache
(`kv_cache.py`) executes any plan. To try another policy, write one more small class with all that
`ContextPolicy` lists (`layout`, `local_frames`, `candidates`, `plan`; and `retrieves` and `build`, by
which a run makes one), name it in `POLICIES`, and set `model_kwargs.policy` to that name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from utils.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Sizes of the context in latent frames.

    Attributes:
        window: frames of context in all, the block's own included (`local_attn_size`, L).
        sink: first frames of the video that stay for ever (`sink_size`, S).
        memory: slots for retrieved frames (`memory_size`, K).
        recent_exclude: how many of the frames that left the window last may not be retrieved yet (R).
        block: frames of a block (`num_frame_per_block`).
    """

    window: int
    sink: int
    memory: int = 0
    recent_exclude: int = 0
    block: int = 3

    def __post_init__(self) -> None:
        if min(self.sink, self.memory, self.recent_exclude) < 0 or self.block < 1:
            raise UserError(f"{self}: sizes cannot be negative, and a block has at least one frame")
        if self.sink > self.block:
            raise UserError(
                f"sink_size {self.sink} is more than the {self.block} frames of the first block, which writes the "
                f"sink; use at most {self.block}"
            )
        if self.window < self.sink + self.block:
            raise UserError(
                f"local_attn_size {self.window} cannot hold sink_size {self.sink} and a block of {self.block} frames; "
                f"use at least {self.sink + self.block}"
            )
        if self.window < self.sink + self.memory + self.block:
            raise UserError(
                f"sink_size {self.sink} + memory_size {self.memory} leave {self.window - self.sink - self.memory} of "
                f"local_attn_size {self.window} frames for a block of {self.block}; "
                f"memory_size can be at most {self.window - self.sink - self.block}"
            )

    def evicted(self, start: int) -> int:
        """How many non-sink frames have left the window before the block at `start` runs."""
        return max(start - self.window, 0)


@dataclass(frozen=True)
class ContextPlan:
    """The context of one block, in the order in which it is laid out: [sink | memory | local | own].

    Attributes:
        sink, local: earlier frames that every sample of the batch attends to.
        memory: per sample, the retrieved frames; equally many for all samples.
        own: the block's frames.
        positions: temporal index of every frame of the layout, own frames last.
    """

    sink: tuple[int, ...]
    memory: tuple[tuple[int, ...], ...]
    local: tuple[int, ...]
    own: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def query_positions(self) -> tuple[int, ...]:
        return self.positions[-len(self.own) :]

    def attended(self, sample: int = 0) -> tuple[int, ...]:
        """All frames that a sample of the batch attends to, in order."""
        memory = self.memory[sample] if self.memory else ()
        return self.sink + memory + self.local + self.own


class ContextPolicy(Protocol):
    """What a context policy has and answers.

    Attributes:
        retrieves: of the class: whether its layout has slots for memory, and a run with it retrieves.
        layout: the sizes it works with.
        local_frames: how many of the latest frames (own included) a plan may name as local or own.
    """

    retrieves: ClassVar[bool]
    layout: Layout
    local_frames: int

    @classmethod
    def build(cls, layout: Layout, kwargs: Any) -> "ContextPolicy":
        """The policy of a run, whose settings `model_kwargs` are (`pipeline.config.ModelKwargs`)."""

    def candidates(self, start: int) -> range:
        """Frames that may be retrieved for the block at `start`; empty where there is no retrieval."""

    def plan(self, start: int, memory: Sequence[Sequence[int]] = ()) -> ContextPlan:
        """The context of the block at `start`, given the frames retrieved for each sample."""


@dataclass(frozen=True)
class SlidingWindow:
    """[sink | local]: the sink frames and the latest frames of the window.

    Attributes:
        window_positions: rotate keys to their place in the window, as `RetrievedMemory` does, rather
            than to their absolute frame index.
    """

    retrieves: ClassVar[bool] = False
    layout: Layout
    window_positions: bool = False

    @classmethod
    def build(cls, layout: Layout, kwargs: Any) -> "SlidingWindow":
        return cls(layout, kwargs.window_positions)

    @property
    def local_frames(self) -> int:
        return self.layout.window - self.layout.sink

    def candidates(self, start: int) -> range:
        return range(0)

    def plan(self, start: int, memory: Sequence[Sequence[int]] = ()) -> ContextPlan:
        assert not memory, "a sliding window retrieves nothing"
        return _plan(self.layout, start, (), self.local_frames, self.window_positions)


@dataclass(frozen=True)
class RetrievedMemory:
    """[sink | retrieved | local] at window positions; retrieved frames sit at temporal index 0.

    Attributes:
        unused_to_local: memory slots that nothing was retrieved for hold further local frames.
    """

    retrieves: ClassVar[bool] = True
    layout: Layout
    unused_to_local: bool = False

    @classmethod
    def build(cls, layout: Layout, kwargs: Any) -> "RetrievedMemory":
        return cls(layout, kwargs.unused_to_local)

    @property
    def local_frames(self) -> int:
        reserved = 0 if self.unused_to_local else self.layout.memory
        return self.layout.window - self.layout.sink - reserved

    def candidates(self, start: int) -> range:
        count = max(self.layout.evicted(start) - self.layout.recent_exclude, 0) if self.layout.memory else 0
        return range(self.layout.sink, self.layout.sink + count)

    def plan(self, start: int, memory: Sequence[Sequence[int]] = ()) -> ContextPlan:
        memory = tuple(tuple(frames) for frames in memory)
        retrieved = len(memory[0]) if memory else 0
        assert all(len(frames) == retrieved for frames in memory), "samples must retrieve equally many frames"
        assert retrieved <= self.layout.memory
        local = self.local_frames - (retrieved if self.unused_to_local else 0)
        return _plan(self.layout, start, memory, local, window_positions=True)


POLICIES: dict[str, type[ContextPolicy]] = {"native": SlidingWindow, "latentmem": RetrievedMemory}


def _plan(
    layout: Layout, start: int, memory: tuple[tuple[int, ...], ...], local_frames: int, window_positions: bool
) -> ContextPlan:
    end = start + layout.block
    own = tuple(range(start, end))
    sink = tuple(range(min(layout.sink, start)))
    local = tuple(range(max(layout.sink, end - local_frames), start))
    shift = max(end - layout.window, 0) if window_positions else 0
    retrieved = len(memory[0]) if memory else 0
    positions = (*sink, *(0,) * retrieved, *(frame - shift for frame in (*local, *own)))
    return ContextPlan(sink, memory, local, own, positions)
