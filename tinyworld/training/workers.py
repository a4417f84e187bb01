"""Processes that make what a training needs next, beside it."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Given = TypeVar("Given")
Made = TypeVar("Made")


class _Items(Dataset):
    def __init__(self, make: Callable[[Given], Made], items: Sequence[Given]) -> None:
        self.make = make
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Made:
        return self.make(self.items[number])


def made_ahead(make: Callable[[Given], Made], items: Sequence[Given], workers: int) -> Iterator[Made]:
    """`make` of every item, in order; so many processes make the next ones, with 0 this one makes each when asked."""
    own = torch.Generator()  # a loader draws a number, which PyTorch's own generator is not to lose
    yield from DataLoader(
        _Items(make, items),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=own,
        multiprocessing_context="fork" if workers else None,
    )


def _as_it_is(x: Made) -> Made:
    return x
