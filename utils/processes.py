"""Which of torchrun's processes this is, and its share of the work.

GPUS_PER_VIDEO processes that follow each other are a group that makes one video at a time; by default each is alone.
"""

import os
import re
from collections.abc import Sequence
from typing import TypeVar

from utils.errors import UserError

T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def per_video() -> int:
    """How many processes make one video together."""
    return whole_number("GPUS_PER_VIDEO", os.environ.get("GPUS_PER_VIDEO") or "1", 1)


def leads() -> bool:
    """Whether this is the first process of its group, which decides and writes."""
    return rank() % per_video() == 0


def share(items: Sequence[T]) -> list[T]:
    """This group's items: every one belongs to exactly one group."""
    return list(items[rank() // per_video() :: world_size() // per_video()])


def require_whole_groups(processes: int) -> None:
    """Refuse a number of processes that is no multiple of those that make one video."""
    group = per_video()
    if processes % group:
        raise UserError(
            f"GPUS_PER_VIDEO={group} takes a multiple of {group} processes and this run has {processes}; name as many "
            "GPUs with GPU=, or set the number of processes with NGPU="
        )


def whole_number(name: str, text: str, least: int, most: int | None = None) -> int:
    """A number from the environment, or a `UserError` that names its variable."""
    words = f"a whole number of {least} or more"
    if most is not None:
        words = f"a whole number from {least} to {most}"
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least or (most is not None and int(text) > most):
        raise UserError(f"{name}={text} is not {words}")
    return int(text)
