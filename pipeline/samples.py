"""What a run makes: samples, in batches that are the same however many processes share the work."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One video to make: a prompt, its number, and which of the prompt's samples it is."""

    prompt: str
    index: int = 0
    number: int = 0


def batches_of(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Consecutive samples together.

    A batch is made as a whole, also where some of its files are there already: what is computed together
    stays together, to the last bit, whenever a run was interrupted and however many processes share it.
    """
    return [list(samples[first : first + size]) for first in range(0, len(samples), size)]
