"""The processes that make one video together: how they meet, and what the first of them decides for all.

All hold the whole latents and draw the same noise; each has the keys and values of its own heads. The first one
encodes the prompts, chooses what is retrieved, decodes and writes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import TypeVar

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pipeline.context import ContextPolicy
from pipeline.merges import MERGES
from pipeline.retrieval import Index, Selection
from utils.errors import LostPeer, UserError
from utils.processes import per_video, require_whole_groups, world_size
from wan.exchange import ALONE, Exchange, bytes_of_forward
from wan.params import WanParams

T = TypeVar("T")
PATIENCE = timedelta(days=365)  # with a process that works: the first one may encode prompts for hours
EXCHANGE_PATIENCE = timedelta(hours=1)  # between two GPUs; one whose machine vanished never answers


@dataclass(frozen=True)
class Group:
    """The processes that make one video together; by default, this one alone.

    Attributes:
        exchange: of tokens and heads among them.
        host: their process group for what lies in host memory.
    """

    exchange: Exchange = ALONE
    host: "dist.ProcessGroup | None" = None

    @property
    def leads(self) -> bool:
        """Whether this is the first of them."""
        return self.exchange.number == 0

    def first(self, make: Callable[..., T], *arguments: object) -> T:
        """What the first process makes, in all of them; they call it in the same order.

        Raises:
            LostPeer: another process has ended.
        """
        made = make(*arguments) if self.leads else None
        if self.host is None:
            return made
        box = [made]
        try:
            dist.monitored_barrier(self.host, PATIENCE)
            dist.broadcast_object_list(box, group=self.host, group_src=0)
        except RuntimeError as error:
            raise LostPeer from error
        return box[0]

    def shared(self, index: Index) -> Index:
        """An index whose choices are the first process's."""
        return index if self.host is None else SharedIndex(index, self)


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """This process's group, for a run on `device`; where videos are not shared, no process waits for another.

    Raises:
        LostPeer: another process has ended.
    """
    if per_video() == 1:
        yield Group()
        return
    try:
        dist.init_process_group("gloo")
        shape = (world_size() // per_video(), per_video())
        host = init_device_mesh("cpu", shape, mesh_dim_names=("prompts", "video")).get_group("video")
        group = host
        if device.type == "cuda":
            group, _ = dist.new_subgroups(per_video(), backend="nccl", timeout=EXCHANGE_PATIENCE)
    except RuntimeError as error:
        raise LostPeer from error
    yield Group(Exchange(group), host)
    try:
        dist.monitored_barrier(timeout=PATIENCE)  # the run's first process is the others' meeting place to the end
    except RuntimeError as error:
        raise LostPeer from error


class SharedIndex:
    """The first process's index: the others hear what it chose. See `pipeline.retrieval.Index`.

    Two machines may round a similarity differently, and one other frame in one process would spoil a video.
    """

    def __init__(self, index: Index, group: Group) -> None:
        self.index, self.group = index, group

    def add(self, latents: torch.Tensor) -> None:
        if self.group.leads:
            self.index.add(latents)

    def drop(self, frame: int) -> None:
        if self.group.leads:
            self.index.drop(frame)

    def most_similar_pair(self, frames: Sequence[int]) -> tuple[int, int]:
        return self.group.first(self.index.most_similar_pair, frames)

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: torch.Tensor | None = None
    ) -> Selection:
        return self.group.first(self.index.select, candidates, k, rngs, draft)


def require_group(policy: ContextPolicy, params: WanParams, tokens: int, source: str) -> None:
    """Refuse a run whose videos cannot be shared out as GPUS_PER_VIDEO says.

    Args:
        tokens: of a block.
        source: the weights' file, for the message.
    """
    count = per_video()
    if count == 1:
        return
    require_whole_groups(world_size())
    if "MASTER_ADDR" not in os.environ:
        raise UserError(f"GPUS_PER_VIDEO={count} takes processes that know of each other; start them by inference.sh")
    if params.num_heads % count or tokens < count:
        most = min(params.num_heads, tokens)
        fit = [str(number) for number in range(1, most + 1) if params.num_heads % number == 0]
        raise UserError(
            f"GPUS_PER_VIDEO={count} cannot share out the {params.num_heads} attention heads of {source} and a "
            f"block's {tokens} tokens; use {', '.join(fit[:-1])} or {fit[-1]}"
        )
    if policy.merged_frames and not MERGES[policy.merge].by_head:
        raise UserError(
            f"GPUS_PER_VIDEO={count} gives a process some of the heads, and model_kwargs.merge {policy.merge} looks at "
            "all of them together; unset GPUS_PER_VIDEO, or choose another merge"
        )


def describe_group(params: WanParams, tokens: int, batch: int, itemsize: int) -> str:
    """How a video is shared out, for a person; nothing where it is not.

    Args:
        tokens: of a block of one video.
    """
    count = per_video()
    if count == 1:
        return ""
    megabytes = bytes_of_forward(params, tokens, batch, count, itemsize) / 1e6
    return (
        f"a video on {count} processes: {params.num_heads // count} of {params.num_heads} heads each; they send each "
        f"other {megabytes:.1f} MB a forward\n"
    )
