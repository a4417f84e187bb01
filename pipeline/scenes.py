"""What happens where the prompt changes: rules by name, and how the plans of later blocks differ.

A rule is a function of the generation, called before the first block under the new prompt; its text is the
new one already. To add one, write a function and name it in `SWITCHES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.context import LOCAL, OWN, SINK, ContextPlan, ContextPolicy, Piece, sink
from utils.errors import UserError
from utils.settings import require_choice

if TYPE_CHECKING:
    from pipeline.generation import Generation

CUT_AT = 45  # temporal index of a cut's first frame, far from the past (infinity-RoPE, arXiv 2511.20649)
FLUSH_KEEPS = 2  # latest frames that a flush leaves (infinity-RoPE's code)


@dataclass(frozen=True)
class Scene:
    """How the plans of the present scene differ from the policy's own.

    Attributes:
        floor: local frames before it are forgotten.
        sink: frames that took the place of the video's first ones.
        cut: first frame of the block that is a hard cut.
        first: first frame of the scene; it changes no plan by itself.
    """

    floor: int = 0
    sink: tuple[int, ...] | None = None
    cut: int | None = None
    first: int = field(default=0, compare=False)

    def adapt(self, plan: ContextPlan) -> ContextPlan:
        """The plan as this scene has it."""
        if self == Scene():
            return plan
        at_own_index = plan.own[0].position == plan.own[0].frame
        rows = []
        for row in plan.past:
            forgotten = sum(piece.role == LOCAL and piece.frame < self.floor for piece in row)
            shift = 0 if at_own_index else forgotten  # positions in a window close up
            rows.append(self._row(row, shift))
        own = tuple(piece._replace(position=piece.position - shift) for piece in plan.own)
        if plan.start != self.cut:
            return replace(plan, past=tuple(rows), own=own)
        own = tuple(piece._replace(position=CUT_AT + place) for place, piece in enumerate(own))
        rows = [tuple(piece._replace(position=place) for place, piece in enumerate(row)) for row in rows]
        return replace(plan, past=tuple(rows), own=own)

    def _row(self, row: tuple[Piece, ...], shift: int) -> tuple[Piece, ...]:
        found = []
        sinks = 0
        for piece in row:
            if piece.role == LOCAL:
                if piece.frame >= self.floor:
                    found.append(piece._replace(position=piece.position - shift))
            elif piece.role == SINK and self.sink is not None:
                frame = self.sink[sinks]
                position = frame if piece.position == piece.frame else piece.position
                found.append(piece._replace(frame=frame, position=position))
                sinks += 1
            else:
                found.append(piece)
        return tuple(found)


def text(generation: "Generation") -> None:
    """The text changes; all that was made stays in view."""


def flush(generation: "Generation") -> None:
    """Local frames but the latest two are forgotten; the sink stays (infinity-RoPE's flush)."""
    generation.scene = replace(generation.scene, floor=generation.start - FLUSH_KEEPS)


def cut(generation: "Generation") -> None:
    """A flush, and the next block sits far from the past (infinity-RoPE's cut)."""
    flush(generation)
    generation.scene = replace(generation.scene, cut=generation.start)


def recache(generation: "Generation") -> None:
    """Local frames get keys and values anew, under the new prompt; sink and bank stay as they are (LongLive)."""
    policy, start = generation.policy, generation.start
    frames = range(max(start - policy.local_size, policy.sink_size), start)
    generation.recommit(frames, sink(policy, start))


def recache_sink(generation: "Generation") -> None:
    """The same with nothing left of the old prompt: the window's first frames become the sink (LongLive)."""
    policy, start = generation.policy, generation.start
    frames = range(max(start - policy.local_size - policy.sink_size, 0), start)
    new_sink = tuple(range(frames.start, frames.start + policy.sink_size))  # early on, frames to come are among them
    generation.cache.pin(new_sink)
    generation.scene = replace(generation.scene, sink=new_sink)
    generation.recommit(frames)


SWITCHES: dict[str, Callable[["Generation"], None]] = {
    "text": text,
    "flush": flush,
    "cut": cut,
    "recache": recache,
    "recache_sink": recache_sink,
}


def require_switch(policy: ContextPolicy, how: str) -> None:
    """Refuse a rule that is none, or means nothing for a policy.

    Raises:
        UserError: names both.
    """
    require_choice("switch", how, SWITCHES)
    if how == "recache_sink" and policy.pinned != policy.sink_size:
        raise UserError(
            f"switch recache_sink makes the window's first frames the sink, and this method keeps {policy.pinned} "
            f"first frames where sink_size is {policy.sink_size}; use recache, text, flush or cut"
        )


def whole_plan(frames: range, past: tuple[Piece, ...]) -> ContextPlan:
    """Frames that all see each other, at their own indices, and the past."""
    return ContextPlan((past,), tuple(Piece(OWN, frame, frame) for frame in frames))
