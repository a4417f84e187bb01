"""Prompts from a file: which lines, under which numbers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files import require_file


@dataclass(frozen=True)
class Prompt:
    """A prompt and its number: the line of its file, counted from 0, blank lines included."""

    index: int
    text: str


def read_prompts(path: str | Path, limit: int = -1) -> list[Prompt]:
    """The non-blank lines of a prompt file, at most `limit` of them; each keeps its line's number.

    Raises:
        UserError: no such file, not text, or nothing but blank lines.
    """
    path = require_file(path, "prompt file data_path", 'correct the path, or give one prompt with prompt="..."')
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file data_path {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    prompts = [Prompt(index, line.strip()) for index, line in enumerate(lines) if line.strip()]
    if not prompts:
        raise UserError(f"prompt file data_path {path} holds no prompts; write one a line")
    return prompts if limit == -1 else prompts[:limit]


def sample_prompts(prompts: Sequence[Prompt], ratio: float, seed: int) -> list[Prompt]:
    """A share of the prompts (at least one), drawn by `seed`, in their order."""
    count = max(round(ratio * len(prompts)), 1)
    return [prompts[i] for i in sorted(random.Random(seed).sample(range(len(prompts)), count))]
