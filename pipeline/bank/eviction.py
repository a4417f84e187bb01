"""Which frame goes when the bank is full: bookkeeping on frame numbers, no tensors.

To add a rule, write a function and name it in `EVICTIONS`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BankState:
    """A full bank to which one more frame comes.

    Attributes:
        kept: the frames in it, oldest first.
        new: the frame that comes.
        seen: how many frames have come so far, the new one included.
        most_similar_pair: frames -> the two of them that are most similar; None without a retrieval index.
    """

    kept: Sequence[int]
    new: int
    seen: int
    most_similar_pair: Callable[[Sequence[int]], tuple[int, int]] | None


EvictionRule = Callable[[BankState], int]  # -> the victim: one of the frames kept, or the new one


def fifo(bank: BankState) -> int:
    """The oldest frame goes."""
    return bank.kept[0]


def reservoir(bank: BankState) -> int:
    """Every frame so far is kept with the same chance (Vitter, ACM TOMS 11, 1985)."""
    slot = random.Random(bank.new).randrange(bank.seen)
    return bank.kept[slot] if slot < len(bank.kept) else bank.new


def redundancy(bank: BankState) -> int:
    """Of the two frames that are most similar, the older one goes."""
    return min(bank.most_similar_pair([*bank.kept, bank.new]))


EVICTIONS: dict[str, EvictionRule] = {"fifo": fifo, "reservoir": reservoir, "redundancy": redundancy}
