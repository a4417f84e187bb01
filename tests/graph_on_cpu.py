"""What stands for CUDA graphs on a CPU: operations are kept, and called again on the same memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`: whatever Python does while it captures is not done again.

    Attributes:
        made: tensors that the captured operations allocated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        given = {memory_of(x) for x in tensors((args, kwargs))}
        self.made += [x for x in tensors(result) if memory_of(x) not in given]
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for place, value in zip(tensors(result), tensors(again), strict=True):
                if memory_of(place) != memory_of(value):
                    place.copy_(value)


@contextmanager
def capturing(graph: Graph, capture_error_mode: str) -> Iterator[None]:
    """Stands for `torch.cuda.graph`: what is captured has not been computed yet."""
    assert capture_error_mode == "thread_local"
    with graph:
        yield
    for x in graph.made:
        if x.is_floating_point():
            x.fill_(torch.nan)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def memory_of(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()
