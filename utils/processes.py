"""Which of torchrun's processes this is, and its share of the work."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def share(items: Sequence[T]) -> list[T]:
    """This process's items: every one belongs to exactly one process."""
    return list(items[rank() :: world_size()])
