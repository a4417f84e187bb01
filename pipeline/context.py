"""What a block attends to: integers only, no tensors.

A policy (`policies.py`) turns the index of a block's first frame into a `ContextPlan`, an ordered list of
pieces; the key/value cache (`kv_cache.py`) executes any plan.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from pipeline.bank.settings import BankSettings
from utils.errors import UserError
from utils.settings import Settings, setting

SINK, RETRIEVED, COMPRESSED, LOCAL, OWN = "sink", "retrieved", "compressed", "local", "own"  # roles of pieces
ENCODED = "encoded"  # encoded once more for one block, beside what other blocks read
MERGED = "merged"  # made by a rule of frames that left, in each layer for itself


class Piece(NamedTuple):
    """A latent frame in a context.

    Attributes:
        role: why it is there.
        frame: its index in the video; of merged pieces -1, -2, ...
        position: its temporal index for rotation; of merged pieces also `OWN_INDEX`.
        pool: 1 for all of its tokens; p for the means over p x p neighbouring tokens.
    """

    role: str
    frame: int
    position: int
    pool: int = 1


OWN_INDEX = -1  # position of a merged piece whose tokens sit at the indices of the frames that they come from


@dataclass(frozen=True)
class ContextPlan:
    """The context of one block, in the order in which it is laid out.

    Attributes:
        past: earlier frames; one row that all samples of the batch share, or one row a sample. Rows are
            alike in the number of their pieces and in each one's `pool`.
        own: the block's frames, after the past.
        leaving: frames that the merged pieces take in with this block.
    """

    past: tuple[tuple[Piece, ...], ...]
    own: tuple[Piece, ...]
    leaving: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        """The block's first frame."""
        return self.own[0].frame

    def pieces(self, sample: int = 0) -> tuple[Piece, ...]:
        """All that a sample of the batch attends to, in order."""
        row = self.past[0] if len(self.past) == 1 else self.past[sample]
        return row + self.own

    def attended(self, sample: int = 0) -> tuple[int, ...]:
        """The frames of `pieces`."""
        return tuple(piece.frame for piece in self.pieces(sample))

    def positions(self, sample: int = 0) -> tuple[int, ...]:
        """The temporal indices of `pieces`."""
        return tuple(piece.position for piece in self.pieces(sample))

    def frames(self, role: str, sample: int = 0) -> tuple[int, ...]:
        """The frames of the pieces of one role."""
        return tuple(piece.frame for piece in self.pieces(sample) if piece.role == role)


@dataclass(frozen=True, kw_only=True)
class ContextPolicy(Settings):
    """Context: sizes that every policy has

    As it stands it is a sliding window, [sink | local], of keys at their frame's own index.
    """

    retrieves: ClassVar[bool] = False  # a run with it has a retrieval index and keeps the frames that leave
    memory_size: ClassVar[int] = 0  # retrieved frames of a plan, at most
    query: ClassVar[str] = "last"  # what retrieved frames are to be like: the last finished one, or a draft
    memory_across_scenes: ClassVar[bool] = True  # frames from before the prompt last changed may be retrieved
    looks_at_noise: ClassVar[bool] = False  # what a block sees depends on its first denoising forward
    merged_frames: ClassVar[int] = 0  # merged frames of a plan, at most

    local_attn_size: int = setting(12, "latent frames a block attends to, its own included (L)", at_least=1)
    sink_size: int = setting(1, "first latent frames of the video that always stay (S)", at_least=0)
    commit_rule: str = setting(
        "same",
        "what the forward sees that leaves a finished block's keys and values: the same as its denoising, its own "
        "frames alone, the newest frames, or all but retrieved frames",
        choices=("same", "own", "newest", "without_memory"),
    )
    commit_frames: int = setting(12, "newest: how many frames, the block's own included", at_least=1)
    head_groups: str | None = setting(
        None, "JSON file: groups of attention heads and the part of the context that each sees", reads=True
    )
    bias: str = setting(
        "none", "what is added to the logits of earlier frames in denoising", choices=("none", "recency")
    )
    bias_strength: float = setting(4.0, "bias recency: how much is taken off at distance 1", at_least=0, at_most=1000)
    bias_power: float = setting(
        0.1, "bias recency: power of the distance at the first step; it doubles with each", at_least=0, at_most=10
    )
    block: int = 3  # latent frames generated together; a run's `num_frame_per_block`
    first: int | None = None  # latent frames of the video's first block, where it is another

    def __post_init__(self) -> None:
        super().__post_init__()
        room = self.local_attn_size - self.sink_size - self.block
        if room < 0:
            raise UserError(
                f"local_attn_size {self.local_attn_size} cannot hold sink_size {self.sink_size} and a block of "
                f"{self.block} frames; use at least {self.sink_size + self.block}"
            )
        if room < self.memory_size:
            raise UserError(
                f"sink_size {self.sink_size} + memory_size {self.memory_size} leave "
                f"{room + self.block - self.memory_size} of local_attn_size {self.local_attn_size} frames for a block "
                f"of {self.block}; memory_size can be at most {room}"
            )
        if not self.block <= self.commit_frames <= self.local_attn_size and self.commit_rule == "newest":
            raise UserError(
                f"commit_frames {self.commit_frames} must be at least the {self.block} frames of a block and at most "
                f"local_attn_size {self.local_attn_size}"
            )

    @property
    def pinned(self) -> int:
        """How many of the video's first frames are kept for ever."""
        return self.sink_size

    @property
    def local_size(self) -> int:
        """Frames of the local part, the block's own included."""
        return self.local_attn_size - self.sink_size

    @property
    def recent(self) -> int:
        """How many of the latest frames, the block's own included, are kept at hand."""
        return max(self.local_size, self.commit_frames if self.commit_rule == "newest" else 0)

    @property
    def largest(self) -> tuple[int, ...]:
        """`pool` of every piece of the largest plan: how much room a context takes."""
        return (1,) * self.local_attn_size

    @property
    def fetched(self) -> tuple[int, ...]:
        """`pool` of the pieces of a plan that may be neither pinned nor recent."""
        return (1,) * self.memory_size

    def bank(self, settings: BankSettings) -> BankSettings:
        """The settings of its bank, given those that the user chose.

        Raises:
            UserError: they do not go with this policy.
        """
        if settings.eviction == "redundancy" and not self.retrieves:
            raise UserError("bank.eviction redundancy compares frames as a retrieval does; use fifo or reservoir")
        return settings

    def size(self, start: int) -> int:
        """Latent frames of the block at `start`."""
        return self.first if start == 0 and self.first is not None else self.block

    def number(self, start: int) -> int:
        """How many blocks come before the one at `start`."""
        return -(-start // self.block)

    def candidates(self, start: int) -> range:
        """Frames that may be retrieved for the block at `start`."""
        return range(0)

    def plan(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> ContextPlan:
        """The context of the block at `start`, given the frames retrieved for each sample of the batch."""
        return ContextPlan((sink(self, start) + local(self, start, self.local_size),), own(self, start))

    def before(self, start: int) -> tuple[ContextPlan, ...]:
        """Further clean forwards before the block at `start`, over finished blocks.

        What own pieces leave takes the place of what the frames left before; of the role `ENCODED`, it lies beside
        that until the next such forward.
        """
        return ()

    @property
    def encoded_frames(self) -> int:
        """How many frames lie beside the others, encoded once more."""
        return 0

    def commit(self, plan: ContextPlan) -> ContextPlan:
        """The context of the forward that leaves the keys and values of a finished block."""
        return COMMIT_RULES[self.commit_rule](self, plan)

    def describe(self) -> str:
        """The layout, for a person."""
        return f"[sink {self.sink_size} | local {self.local_size}]{self.describe_commit()}"

    def describe_commit(self) -> str:
        """What differs at the commit, if anything does."""
        words = {
            "own": "; committed alone",
            "newest": f"; committed with the newest {self.commit_frames} frames in view",
            "without_memory": "; committed without retrieved frames",
        }
        return words.get(self.commit_rule, "")


def window_shift(policy: ContextPolicy, start: int) -> int:
    """What to take off a frame's index for its place in a window that ends with the block at `start`."""
    return max(start + policy.block - policy.local_attn_size, 0)


def sink(policy: ContextPolicy, start: int) -> tuple[Piece, ...]:
    """The pinned frames before `start`, at their own indices."""
    return tuple(Piece(SINK, frame, frame) for frame in range(min(policy.sink_size, start)))


def local(policy: ContextPolicy, start: int, size: int, shift: int = 0) -> tuple[Piece, ...]:
    """The latest frames before `start`, so many that with the block's own they are at most `size`."""
    first = max(policy.sink_size, start + policy.block - size)
    return tuple(Piece(LOCAL, frame, frame - shift) for frame in range(first, start))


def own(policy: ContextPolicy, start: int, shift: int = 0) -> tuple[Piece, ...]:
    """The block's frames."""
    return tuple(Piece(OWN, frame, frame - shift) for frame in range(start, start + policy.size(start)))


def commit_same(policy: ContextPolicy, plan: ContextPlan) -> ContextPlan:
    """As it was denoised."""
    return plan


def commit_own(policy: ContextPolicy, plan: ContextPlan) -> ContextPlan:
    """The block alone (ID-Forcing, arXiv 2610.03120)."""
    return ContextPlan(((),), plan.own)


def commit_newest(policy: ContextPolicy, plan: ContextPlan) -> ContextPlan:
    """The newest real frames: no sink, nothing retrieved (Commit Forcing)."""
    first = plan.own[0]
    shift = first.frame - first.position
    oldest = max(plan.start + len(plan.own) - policy.commit_frames, 0)
    past = tuple(Piece(LOCAL, frame, frame - shift) for frame in range(oldest, plan.start))
    return ContextPlan((past,), plan.own)


def commit_without_memory(policy: ContextPolicy, plan: ContextPlan) -> ContextPlan:
    """All but what was retrieved or merged."""
    row = tuple(piece for piece in plan.past[0] if piece.role not in (RETRIEVED, MERGED))
    return ContextPlan((row,), plan.own)


COMMIT_RULES: dict[str, Callable[[ContextPolicy, ContextPlan], ContextPlan]] = {
    "same": commit_same,
    "own": commit_own,
    "newest": commit_newest,
    "without_memory": commit_without_memory,
}
