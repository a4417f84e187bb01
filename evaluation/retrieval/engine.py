"""Retrieval replayed on a finished clip with the engine's own policy, index and rules.

Of this package, only this file knows their classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch

from pipeline.descriptors import Asking, AutoEncoder, AvgPool, Describe, Useful
from pipeline.policies import RetrievedMemory
from pipeline.retrieval import Retrieval
from pipeline.selection import SELECTIONS


@dataclass(frozen=True)
class Block:
    """A block of a clip, and what its policy lets it retrieve.

    Attributes:
        frames: its own frames.
        candidates: earlier frames that may be retrieved.
        attended: earlier frames that it attends to whatever is retrieved.
        count: how many frames are retrieved.
    """

    frames: range
    candidates: range
    attended: tuple[int, ...]
    count: int


def make_policy(window: int, sink: int, memory: int, exclude: int, block: int) -> RetrievedMemory:
    """The policy of inference: sizes in latent frames, under the names of `--help`."""
    return RetrievedMemory(
        local_attn_size=window, sink_size=sink, memory_size=memory, recent_exclude=exclude, block=block
    )


def sizes(policy: RetrievedMemory) -> dict[str, int]:
    """A policy's sizes as plain data."""
    return asdict(policy)


def blocks_with_a_choice(policy: RetrievedMemory, frames: int) -> list[Block]:
    """The blocks of a clip of so many frames that have more candidates than they retrieve."""
    size = policy.block
    count = policy.memory_size
    blocks = []
    for start in range(0, frames - size + 1, size):
        candidates = policy.candidates(start)
        if len(candidates) > count:
            attended = policy.plan(start).attended()[:-size]
            blocks.append(Block(range(start, start + size), candidates, attended, count))
    return blocks


def load_average() -> Describe:
    """The descriptor that needs no weights."""
    return AvgPool().load((), "cpu")


def load_descriptor(path: str | Path, shape: Sequence[int], device: torch.device | str) -> Describe:
    """The descriptor of an encoder's checkpoint, for latent frames of `shape` [C, H, W]."""
    return AutoEncoder(ae_ckpt=str(path)).load(tuple(shape), device)


def load_useful(path: str | Path, shape: Sequence[int], device: torch.device | str) -> Describe:
    """The descriptor of an encoder of usefulness, for latent frames of `shape` [C, H, W]."""
    return Useful(useful_ckpt=str(path)).load(tuple(shape), device)


def replay(
    descriptors: torch.Tensor, blocks: Sequence[Block], selection: str, draw: str, asking: Asking | None = None
) -> list[tuple[int, ...]]:
    """The frames that a rule retrieves for each block of a clip, best first.

    Args:
        descriptors: [F, D], of every frame; with `asking`, the latents [F, C, H, W] that it describes itself.
        selection: name of a rule in `pipeline.selection.SELECTIONS`.
        draw: what tells one draw of a random rule from another; the block's start tells its blocks apart.
    """
    retrieved = []
    described = 0
    described_already = asking or (lambda vectors: vectors)
    index = Retrieval(described_already, SELECTIONS[selection])
    for block in blocks:
        start = block.frames.start
        index.add(descriptors[None, described:start])
        described = start
        chosen = index.select(block.candidates, block.count, [Random(f"{draw}/{start}")])
        retrieved.append(chosen.frames[0])
    return retrieved
