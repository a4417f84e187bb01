"""One video on several processes: each has a part of a block's tokens, and in self-attention a part of the heads.

Everything but self-attention works on tokens alone, so that a process needs only its own. Self-attention works on
heads alone: before it, processes give each other the heads' queries, keys and values for tokens, after it the tokens'
results for heads (DeepSpeed-Ulysses, arXiv 2309.14509). A context thus sees all tokens of its process's heads.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import distributed as dist

from utils.errors import LostPeer
from wan.params import WanParams


class Exchange:
    """The exchanges of one process with the others that make the same video.

    Args:
        group: those processes; None for a process that is alone and exchanges nothing.

    Attributes:
        number, count: which of them this is, and how many they are.
        lengths: tokens of each of them in the present forward.
        sent: bytes sent to the others so far.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None) -> None:
        self.group = group
        self.number = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)
        self.lengths: list[int] = []
        self.sent = 0

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """This process's tokens of [B, T, dim], as even a share as can be; begins a forward."""
        if self.count == 1:
            return x
        self.lengths = shares(x.shape[1], self.count)
        return x.split(self.lengths, dim=1)[self.number]

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """All tokens [B, T, dim], in every process, from its own [B, own, dim]."""
        if self.count == 1:
            return x
        batch, _, dim = x.shape
        received = self._swap([x] * self.count, [(batch, length, dim) for length in self.lengths])
        return torch.cat(received, dim=1)

    def to_heads(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q, k, v [B, own tokens, heads, head_dim] to [B, T, own heads, head_dim]."""
        if self.count == 1:
            return q, k, v
        given = rearrange(torch.stack([q, k, v]), "qkv b t (r n) d -> r qkv b t n d", r=self.count)
        _, three, batch, _, heads, head_dim = given.shape
        shapes = [(three, batch, length, heads, head_dim) for length in self.lengths]
        return torch.cat(self._swap(list(given), shapes), dim=2).unbind()

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """What attention gives [B, T, own heads, head_dim] to [B, own tokens, heads, head_dim]."""
        if self.count == 1:
            return x
        given = x.split(self.lengths, dim=1)
        shape = tuple(given[self.number].shape)
        return torch.cat(self._swap(given, [shape] * self.count), dim=2)

    def _swap(self, given: Sequence[torch.Tensor], shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Give each process its piece; the pieces, of these shapes, that they have for this one.

        Raises:
            LostPeer: another process has ended.
        """
        flat = torch.cat([piece.flatten() for piece in given])
        given_sizes = [piece.numel() for piece in given]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        received = flat.new_empty(sum(sizes))
        try:
            dist.all_to_all_single(received, flat, sizes, given_sizes, group=self.group)
        except RuntimeError as error:
            raise LostPeer from error
        self.sent += (flat.numel() - given_sizes[self.number]) * flat.itemsize
        return [piece.view(shape) for piece, shape in zip(received.split(sizes), shapes, strict=True)]


ALONE = Exchange()


def shares(total: int, count: int) -> list[int]:
    """`total` as `count` whole numbers that differ by one at most, the larger ones first."""
    found = []
    for number in range(count):
        found.append(total // count + (number < total % count))
    return found


def bytes_of_forward(
    params: WanParams, tokens: int, batch: int, count: int, itemsize: int, leaves: bool = False
) -> int:
    """What `count` processes send each other in one forward, all together.

    A layer's queries, keys, values and results go to their heads' or tokens' process, which is another one for
    (count - 1) / count of them. The numbers that the last layer makes of a token go to all others.

    Args:
        leaves: it only leaves keys and values (`CausalWanModel.leave`), so that the last layer has no results.
    """
    vectors = 4 * params.num_layers - leaves
    layers = vectors * params.dim * (count - 1) // count
    patch = params.patch_size[0] * params.patch_size[1] * params.patch_size[2]
    last = 0 if leaves else params.out_dim * patch * (count - 1)
    return batch * tokens * (layers + last) * itemsize
