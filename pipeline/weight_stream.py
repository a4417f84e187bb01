"""Blocks whose weights lie in host memory, and come to the device one block ahead of the computation."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from utils.streams import SideStream

ALIGNMENT = 256  # bytes; more than any kernel asks of a tensor's address
PIECE = 1 << 26  # bytes; pinned memory is taken in powers of two, of which small pieces waste little


class WeightStream:
    """Runs blocks that are called in turn, with room for the weights of two or three on the device.

    While one block computes, the next one's weights are copied beside it. Each block's weights are views of one place
    on the device, so nothing is allocated, and the host waits for nothing: the copy waits for the block that had the
    place before, and the block for its copy.

    Args:
        blocks: of any kinds, with their weights in host memory. Calling a block brings its weights.
        pin: keep the weights in pinned memory, from which a GPU copies beside the host; it takes long to make.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, pin: bool) -> None:
        self.side = SideStream(device, "weights")
        self.count = len(blocks)
        weights = []
        for block in blocks:
            weights.append([*block.parameters(), *block.buffers()])
        size = max(packed_bytes(list(_parts(one))) for one in weights)
        self.places = torch.empty(places_for(self.count), size, dtype=torch.uint8, device=device)
        self.there: list[int | None] = [None] * len(self.places)  # whose weights are in each place
        self.present: int | None = None  # the block that was entered last
        self.copies: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # of each block: (on the device, on the host)
        self.views: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # of each block: (weight, its view)
        for number, block in enumerate(blocks):
            self._take_in(self.places[self._place(number)], weights[number], pin)
            block.register_forward_pre_hook(self.entering(number))

    def entering(self, number: int) -> Callable:
        """A hook that brings a block's weights before a module is called."""
        return partial(self.enter, number)

    def enter(self, number: int, *_: object) -> None:
        """Let what the current stream is told next have a block's weights; the next block's come meanwhile."""
        self._fetch(number)
        self.side.join()
        if self.present is not None:  # diffusers' layerwise casting leaves weights of its own
            for weight, view in self.views[self.present]:
                weight.data = view
        self.present = number
        self._fetch((number + 1) % self.count)

    def _fetch(self, number: int) -> None:
        place = self._place(number)
        if self.there[place] == number:
            return
        self.there[place] = number
        with self.side.after_now():  # what the place held has been used
            for target, source in self.copies[number]:
                target.copy_(source, non_blocking=True)

    def _place(self, number: int) -> int:
        """Blocks take turns; the last one of an odd number, which the first one follows, has a place of its own."""
        if number == self.count - 1:
            return len(self.places) - 1
        return number % 2

    def _take_in(self, place: torch.Tensor, weights: Sequence[torch.Tensor], pin: bool) -> None:
        """Let a block's weights be views of its place, and keep what they hold."""
        parts = list(_parts(weights))
        on_device = packed(place, parts)
        if pin:
            whole = torch.empty(packed_bytes(parts), dtype=torch.uint8)
            for target, part in zip(packed(whole, parts), parts, strict=True):
                target.copy_(part)
            pinned = [piece.pin_memory() for piece in whole.split(PIECE)]
            self.copies.append(list(zip(place[: len(whole)].split(PIECE), pinned, strict=True)))
        else:
            self.copies.append(list(zip(on_device, parts, strict=True)))
        views = iter(on_device)
        plain = []
        for weight in weights:
            if is_traceable_wrapper_subclass(weight):
                torch.utils.swap_tensors(weight, _rebuilt(weight, views))
            else:
                plain.append((weight, next(views)))
        for weight, view in plain:
            weight.data = view
        self.views.append(plain)


def places_for(blocks: int) -> int:
    """How many blocks' weights a stream of so many blocks has room for on the device."""
    return min(blocks, 2 + blocks % 2)


def packed_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """What tensors take one after another."""
    return sum(-(-x.nbytes // ALIGNMENT) * ALIGNMENT for x in tensors)


def packed(memory: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of some bytes that have the tensors' shapes and types, one after another."""
    views = []
    start = 0
    for x in tensors:
        views.append(memory[start : start + x.nbytes].view(x.dtype).view(x.shape))
        start += -(-x.nbytes // ALIGNMENT) * ALIGNMENT
    return views


def _parts(weights: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The plain tensors that weights consist of: a quantized one holds several."""
    for weight in weights:
        if is_traceable_wrapper_subclass(weight):
            names, _ = weight.__tensor_flatten__()
            yield from _parts([getattr(weight, name) for name in names])
        else:
            yield weight.data


def _rebuilt(weight: torch.Tensor, parts: Iterator[torch.Tensor]) -> torch.Tensor:
    """A quantized weight of other parts."""
    if not is_traceable_wrapper_subclass(weight):
        return next(parts)
    names, context = weight.__tensor_flatten__()
    inner = {name: _rebuilt(getattr(weight, name), parts) for name in names}
    return type(weight).__tensor_unflatten__(inner, context, weight.shape, weight.stride())
