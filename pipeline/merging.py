"""Policies whose contexts have merged frames: which frames leave, and where the merged ones lie. Integers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipeline.context import LOCAL, MERGED, OWN_INDEX, ContextPlan, ContextPolicy, Piece, own, sink
from utils.errors import UserError
from utils.settings import setting

WHOLE = ("tether", "nearest")  # rules that begin with whole frames, the first ones behind the sink


@dataclass(frozen=True, kw_only=True)
class MergingPolicy(ContextPolicy):
    """Context: what becomes of frames that leave the local part

    The merged frames lie behind the sink as soon as the window is full; a rule of `pipeline.merges` makes them.
    """

    merge: str = setting(
        "none",
        "what frames that leave the local part become: nothing; a slow and a fast running mean of them; the same with "
        "a rate for each token; the best of them, kept whole and moved towards the rest; or tokens that each take in "
        "those most like them",
        choices=("none", "ema", "ema_adaptive", "tether", "nearest"),
    )
    merged_size: int = setting(14, "merge tether and nearest: merged frames (M)", at_least=1)
    merge_long: float = setting(0.01, "merge ema: share of the newest frames in the slow mean", above=0, at_most=1)
    merge_short: float = setting(0.1, "merge ema: share of the newest frames in the fast mean", above=0, at_most=1)
    tether_diversity: float = setting(
        0.35, "merge tether: weight of being unlike the other candidates (alpha)", at_least=0, at_most=1000
    )
    tether_pull: float = setting(
        0.35, "merge tether: how far a new frame moves to mean and deviation of the rest (tau)", at_least=0, at_most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        room = self.local_size - self.block
        if self.merged_frames > room:
            raise UserError(
                f"merge {self.merge} needs {self.merged_frames} frames and local_attn_size {self.local_attn_size} with "
                f"sink_size {self.sink_size} and a block of {self.block} leaves {room}; raise local_attn_size"
            )

    @property
    def merged_frames(self) -> int:
        """How many merged frames a context has."""
        if self.merge == "none":
            return 0
        return self.merged_size if self.merge in WHOLE else 2

    @property
    def recent(self) -> int:
        return super().recent + (self.block if self.merged_frames else 0)

    def is_merging(self, start: int) -> bool:
        """Whether frames have left the local part before this block."""
        return bool(self.merged_frames) and start + self.block > self.sink_size + self.local_size

    def merged(self, start: int) -> tuple[Piece, ...]:
        """The merged pieces, at the window's places behind the sink."""
        found = []
        if self.is_merging(start):
            for number in range(self.merged_frames):
                found.append(Piece(MERGED, -1 - number, self.sink_size + number))
        return tuple(found)

    def beside_merged(self, start: int) -> int:
        """Size of the local part."""
        return self.local_size - (self.merged_frames if self.is_merging(start) else 0)

    def leaving(self, start: int) -> tuple[int, ...]:
        """Frames that the merged ones take in with the block at `start`; running means begin with a block of them."""
        if not self.is_merging(start):
            return ()
        stop = start + self.block - self.beside_merged(start)
        first = stop - self.block
        if self.merge in WHOLE and not self.is_merging(start - self.block):
            first = self.sink_size
        return tuple(range(max(first, self.sink_size), stop))

    def describe_merged(self) -> str:
        """The merged part of a layout."""
        if self.merge == "none":
            return ""
        return f" | merged {self.merged_frames} by {self.merge}"


@dataclass(frozen=True, kw_only=True)
class DeepForcing(ContextPolicy):
    """Context of deep_forcing: [sink | best older tokens | local]

    The window fills up; each time it would overflow it is cut to `deep_budget` frames, in which a layer keeps the
    tokens that the latest queries ask for most. The sink moves along in time (Deep Forcing, arXiv 2512.05081).
    """

    merge: ClassVar[str] = "participation"
    looks_at_noise: ClassVar[bool] = True

    deep_budget: int = setting(
        16, "deep_forcing: frames left when a full window is cut, the new ones included", at_least=1
    )
    deep_recent: int = setting(4, "deep_forcing: latest frames that are left whole, the new ones included", at_least=1)
    deep_uses: int = setting(7, "deep_forcing: how often a token may be chosen", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.block <= self.deep_recent <= 2 * self.block:
            raise UserError(
                f"deep_recent {self.deep_recent} must hold the block of {self.block} frames and at most the one before"
            )
        if self.bias != "none":
            raise UserError(
                f"bias {self.bias} needs the place in time of every piece, and policy deep_forcing mixes tokens of "
                "many frames; set bias=none"
            )
        least = self.sink_size + self.deep_recent + 1
        if not least <= self.deep_budget <= self.local_attn_size:
            raise UserError(
                f"deep_budget {self.deep_budget} with sink_size {self.sink_size} and deep_recent {self.deep_recent} "
                f"must be between {least} and local_attn_size {self.local_attn_size}"
            )

    @property
    def merged_frames(self) -> int:
        return self.deep_budget - self.sink_size - self.deep_recent

    @property
    def recent(self) -> int:
        return super().recent + self.block

    def cut_before(self, start: int) -> int | None:
        """The last block, by its first frame, at which the window was cut; None if it never was."""
        first = self.local_attn_size // self.block * self.block
        period = ((self.local_attn_size - self.deep_budget) // self.block + 1) * self.block
        return None if start < first else start - (start - first) % period

    def plan(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> ContextPlan:
        cut = self.cut_before(start)
        first_local = self.sink_size
        pinned, merged, leaving = sink(self, start), (), ()
        if cut is not None:
            shift = max(cut - self.deep_budget, 0)
            pinned = tuple(piece._replace(position=piece.frame + shift) for piece in pinned)
            merged = tuple(Piece(MERGED, -1 - number, OWN_INDEX) for number in range(self.merged_frames))
            first_local = cut + self.block - self.deep_recent
            if start == cut:
                earlier = self.cut_before(start - self.block)
                since = self.sink_size if earlier is None else earlier + self.block - self.deep_recent
                leaving = tuple(range(since, first_local))
        nearby = tuple(Piece(LOCAL, frame, frame) for frame in range(first_local, start))
        return ContextPlan((pinned + merged + nearby,), own(self, start), leaving)

    def describe(self) -> str:
        most = self.deep_recent + self.local_attn_size - self.deep_budget
        return (
            f"[sink {self.sink_size}, moving along | {self.merged_frames} frames' worth of older tokens, by their part "
            f"in attention | local {self.deep_recent} to {most}]{self.describe_commit()}"
        )
