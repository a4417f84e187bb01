"""What a run makes: samples, in batches that are the same however many processes share the work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pipeline.given import Given, Stored
from pipeline.timeline import Segment


@dataclass(frozen=True)
class Sample:
    """One video to make: a prompt, its number, and which of the prompt's samples it is.

    Attributes:
        scenes: the prompts that follow one another in it; none where the one prompt holds from start to end.
        given: its blocks that are there before it is made.
    """

    prompt: str
    index: int = 0
    number: int = 0
    scenes: tuple[Segment, ...] = ()
    given: tuple[Given, ...] = field(default=(), compare=False)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The prompts with their starts, at least one."""
        return self.scenes or (Segment(0, self.prompt),)

    @property
    def prompts(self) -> list[str]:
        """Each distinct prompt."""
        return list(dict.fromkeys(segment.prompt for segment in self.segments))

    @property
    def past(self) -> Stored | None:
        """The blocks of another video that it begins with, where its seed or a kept state of it counts."""
        for given in self.given:
            if isinstance(given, Stored) and (given.seed is not None or given.state is not None):
                return given
        return None

    def layout(self) -> tuple:
        """What samples of one batch have in common: when prompts change and how, and which frames are given."""
        switches = tuple((segment.start, segment.how) for segment in self.segments)
        return switches, tuple(given.frames for given in self.given)


def batches_of(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Consecutive samples together, as far as their layouts are alike.

    A batch is made as a whole, also where some of its files are there already: what is computed together
    stays together, to the last bit, whenever a run was interrupted and however many processes share it.
    """
    batches = []
    for _, alike in groupby(samples, Sample.layout):
        group = list(alike)
        batches += [group[first : first + size] for first in range(0, len(group), size)]
    return batches
