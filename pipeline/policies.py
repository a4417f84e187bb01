"""The context policies: what a block attends to, each a class whose fields are its settings.

To try another one, subclass `ContextPolicy`, say what differs, and name the class in `POLICIES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pipeline.bank.settings import BankSettings
from pipeline.context import (
    COMPRESSED,
    ENCODED,
    LOCAL,
    RETRIEVED,
    SINK,
    ContextPlan,
    ContextPolicy,
    Piece,
    local,
    own,
    sink,
    window_shift,
)
from pipeline.merging import DeepForcing, MergingPolicy
from utils.errors import UserError
from utils.settings import setting


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(MergingPolicy):
    """Context of native: [sink | merged | local]"""

    window_positions: bool = setting(
        False, "native: rotate keys to their place in the window, as latentmem does, not to their frame's index"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merged_frames and not self.window_positions:
            raise UserError(f"merge {self.merge} has places in the window alone; set window_positions=true")

    def plan(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> ContextPlan:
        assert not retrieved, "a sliding window retrieves nothing"
        shift = window_shift(self, start) if self.window_positions else 0
        nearby = local(self, start, self.beside_merged(start), shift)
        past = sink(self, start) + self.merged(start) + nearby
        return ContextPlan((past,), own(self, start, shift), self.leaving(start))

    def describe(self) -> str:
        local_size = self.local_size - self.merged_frames
        return f"[sink {self.sink_size}{self.describe_merged()} | local {local_size}]{self.describe_commit()}"


@dataclass(frozen=True, kw_only=True)
class RetrievedMemory(MergingPolicy):
    """Context of latentmem: [sink | merged | retrieved | local] at window positions, retrieved frames at index 0"""

    retrieves: ClassVar[bool] = True

    memory_size: int = setting(6, "latentmem: retrieved latent frames a block attends to, at most (K)", at_least=0)
    recent_exclude: int = setting(
        5, "latentmem: latest frames to leave the window that may not be retrieved yet (R)", at_least=0
    )
    retrieve_after: str = setting(
        "window",
        "latentmem: what a frame must have left to be retrievable: the window of local_attn_size frames, or the local "
        "part, after which nothing is neither attended to nor retrievable but for recent_exclude",
        choices=("window", "local"),
    )
    unused_to_local: bool = setting(False, "latentmem: slots that nothing was retrieved for hold further local frames")

    retrieved_positions: str = setting(
        "zero",
        "latentmem: temporal indices of retrieved frames: 0, or their places in the window, after the sink",
        choices=("zero", "window"),
    )
    query: str = setting(
        "last",
        "latentmem: what retrieved frames are to be like: the last finished frame, or a draft of the block's last one, "
        "as the first denoising step makes it without memory",
        choices=("last", "draft"),
    )
    memory_across_scenes: bool = setting(
        True, "latentmem: frames from before the prompt last changed may be retrieved; false keeps memory to its scene"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query == "draft" and (self.merged_frames or self.bias != "none"):
            other = f"merge={self.merge}" if self.merged_frames else f"bias={self.bias}"
            raise UserError(
                f"query draft gives a block's first denoising step another context than the others, and {other} needs "
                "them all alike; set query=last"
            )
        of_one_size = f"merge {self.merge}" if self.merged_frames else f"retrieve_after {self.retrieve_after}"
        if self.unused_to_local and (self.merged_frames or self.retrieve_after == "local"):
            raise UserError(
                f"{of_one_size} needs a local part of one size, and unused_to_local=true changes it; set "
                "unused_to_local=false"
            )

    @property
    def local_size(self) -> int:
        reserved = 0 if self.unused_to_local else self.memory_size
        return self.local_attn_size - self.sink_size - reserved

    def candidates(self, start: int) -> range:
        left = start - self.local_attn_size  # frames after the sink that left the window
        if self.retrieve_after == "local":
            left = start + self.block - self.beside_merged(start) - self.sink_size  # or that left the local part
        count = max(left - self.recent_exclude, 0) if self.memory_size else 0
        return range(self.sink_size, self.sink_size + count)

    def plan(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> ContextPlan:
        count = len(retrieved[0]) if retrieved else 0
        assert all(len(frames) == count <= self.memory_size for frames in retrieved), "equally many for each sample"
        shift = window_shift(self, start)
        nearby = local(self, start, self.beside_merged(start) - (count if self.unused_to_local else 0), shift)
        before = sink(self, start) + self.merged(start)
        first, step = (len(before), 1) if self.retrieved_positions == "window" else (0, 0)
        rows = []
        for frames in retrieved or [()]:
            memory = tuple(Piece(RETRIEVED, frame, first + step * place) for place, frame in enumerate(frames))
            rows.append(before + memory + nearby)
        return ContextPlan(tuple(rows), own(self, start, shift), self.leaving(start))

    def describe(self) -> str:
        local_size = self.local_attn_size - self.sink_size - self.memory_size - self.merged_frames
        gap = self.recent_exclude
        if self.retrieve_after == "window":
            gap += self.block + self.memory_size
        return (
            f"[sink {self.sink_size}{self.describe_merged()} | retrieved {self.memory_size} | local {local_size}]; "
            f"{gap} frames before it are neither attended to nor retrievable yet{self.describe_commit()}"
        )


@dataclass(frozen=True, kw_only=True)
class ReencodedWindow(ContextPolicy):
    """Context of reencoded: [sink | blocks committed alone | block before, encoded again] at window positions

    While the video is short, a block sees and is committed with all of it. Then the block before is encoded once more,
    with the one before that in view, and blocks are committed alone (ID-Forcing for Self-Forcing, arXiv 2610.03120).
    """

    plain_frames: int = setting(21, "reencoded: frames at the video's start that all see each other", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = self.sink_size + 3 * self.block
        if self.local_attn_size < needed or self.plain_frames < needed:
            raise UserError(
                f"local_attn_size {self.local_attn_size} and plain_frames {self.plain_frames} must hold the sink, the "
                f"block and two before it; use at least {needed}"
            )
        if self.local_size % self.block:
            raise UserError(
                f"local_attn_size {self.local_attn_size} less sink_size {self.sink_size} is no multiple of the block "
                f"of {self.block} that is encoded again; use {self.local_attn_size - self.local_size % self.block}"
            )
        if self.commit_rule != "same":
            raise UserError(
                f"policy reencoded has a commit of its own; commit_rule {self.commit_rule} cannot change it"
            )

    @property
    def recent(self) -> int:
        return max(self.local_size, self.plain_frames)

    @property
    def largest(self) -> tuple[int, ...]:
        return (1,) * max(self.local_attn_size, self.plain_frames)

    @property
    def encoded_frames(self) -> int:
        return self.block

    def is_plain(self, start: int) -> bool:
        return start + self.block <= self.plain_frames

    def plan(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> ContextPlan:
        if self.is_plain(start):
            return ContextPlan((sink(self, start) + local(self, start, start + self.block),), own(self, start))
        shift = window_shift(self, start)
        past = []
        for piece in local(self, start, self.local_size, shift):
            past.append(piece if piece.frame < start - self.block else piece._replace(role=ENCODED))
        return ContextPlan((sink(self, start) + tuple(past),), own(self, start, shift))

    def before(self, start: int) -> tuple[ContextPlan, ...]:
        if self.is_plain(start):
            return ()
        nearby = [piece for piece in self.plan(start).past[0] if piece.role != SINK]
        again = tuple(piece for piece in nearby if piece.role == ENCODED)
        alone = tuple(piece for piece in nearby if piece.role == LOCAL)
        forwards = []
        if self.is_plain(start - self.block):  # the first block that sees what was committed alone
            for first in range(start - self.local_size + self.block, start, self.block):
                forwards.append(ContextPlan(((),), own(self, first)))
        return (*forwards, ContextPlan((alone,), again))

    def commit(self, plan: ContextPlan) -> ContextPlan:
        return plan if self.is_plain(plan.start) else ContextPlan(((),), plan.own)

    def describe(self) -> str:
        return (
            f"[sink {self.sink_size} | local {self.local_size}, the block before encoded again]; committed alone "
            f"after {self.plain_frames} frames"
        )


@dataclass(frozen=True, kw_only=True)
class RollingSink(ContextPolicy):
    """Context of rolling_sink: [rolled | block before | own]; the rest of the window goes to and fro through the first
    frames, at the indices of the frames that it stands for (Rolling Sink, arXiv 2602.07775)
    """

    @property
    def pinned(self) -> int:
        return self.local_attn_size - self.block

    @property
    def recent(self) -> int:
        return 2 * self.block

    def plan(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> ContextPlan:
        past = []
        for place in range(max(start + self.block - self.local_attn_size, 0), start):
            if place >= start - self.block:
                past.append(Piece(LOCAL, place, place))
            else:
                past.append(Piece(SINK, self._rolled(place), place))
        return ContextPlan((tuple(past),), own(self, start))

    def _rolled(self, place: int) -> int:
        """The early frame that stands for the one at `place`."""
        turn, step = divmod(place, self.pinned)
        return step if turn % 2 == 0 else self.pinned - 1 - step

    def describe(self) -> str:
        return f"[{self.pinned - self.block} rolled among the first {self.pinned} | local {2 * self.block}]"


@dataclass(frozen=True, kw_only=True)
class CompressedPast(ContextPolicy):
    """Context of compressed_past: [sink | older frames, pooled | local] at window positions, older frames at index 0"""

    past_size: int = setting(6, "compressed_past: room for older frames, in whole frames", at_least=0)
    past_pool: int = setting(
        2, "compressed_past: an older frame keeps the means over this many tokens along each side", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        room = self.local_attn_size - self.sink_size - self.block
        if self.past_size > room:
            raise UserError(f"past_size {self.past_size} can be at most {room}")

    @property
    def local_size(self) -> int:
        return self.local_attn_size - self.sink_size - self.past_size

    @property
    def fetched(self) -> tuple[int, ...]:
        return (self.past_pool,) * (self.past_size * self.past_pool**2)

    @property
    def largest(self) -> tuple[int, ...]:
        return (1,) * (self.sink_size + self.local_size) + self.fetched

    def bank(self, settings: BankSettings) -> BankSettings:
        """The latest frames outside the window are kept, no others."""
        needed = len(self.fetched)
        if settings.capacity is not None and settings.capacity < needed:
            raise UserError(
                f"bank.capacity {settings.capacity} is less than the {needed} frames outside the window that every "
                f"block attends to; use at least {needed}"
            )
        return replace(settings, capacity=needed or None, eviction="fifo")

    def plan(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> ContextPlan:
        shift = window_shift(self, start)
        nearby = local(self, start, self.local_size, shift)
        last = nearby[0].frame if nearby else start
        older = range(max(last - len(self.fetched), self.sink_size), last)
        pooled = tuple(Piece(COMPRESSED, frame, 0, self.past_pool) for frame in older)
        return ContextPlan((sink(self, start) + pooled + nearby,), own(self, start, shift))

    def describe(self) -> str:
        pooled = f"{len(self.fetched)} older at 1/{self.past_pool**2} of their tokens"
        return f"[sink {self.sink_size} | {pooled} | local {self.local_size}]{self.describe_commit()}"


POLICIES: dict[str, type[ContextPolicy]] = {
    "native": SlidingWindow,
    "latentmem": RetrievedMemory,
    "deep_forcing": DeepForcing,
    "reencoded": ReencodedWindow,
    "rolling_sink": RollingSink,
    "compressed_past": CompressedPast,
}
