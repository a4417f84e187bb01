"""Denoising forwards as one CUDA graph: the host queues one thing in place of thousands of kernels."""

import torch

from pipeline.config import RunConfig
from pipeline.kv_cache import KVCache
from utils.errors import UserError, first_line
from utils.processes import per_video
from wan.model import CausalWanModel, TextKV


def can_capture(config: RunConfig, gpu: bool) -> bool:
    """Whether a run's forwards may be captured: what they read stays where it is, and no other process takes part."""
    moves = config.preset.offload or config.weights != "same" or config.compile
    return gpu and config.cuda_graphs and not moves and per_video() == 1


class GraphedForward:
    """Predicts the flow as the model does. While nothing but numbers changes, it replays the forward it has captured.

    The window must be full and hold whole frames alone; other forwards run as they do without it.
    """

    def __init__(self) -> None:
        self.captured: CapturedForward | None = None

    def __deepcopy__(self, memo: dict) -> "GraphedForward":
        """One that has captured nothing: the tensors of a copied generation lie elsewhere."""
        return GraphedForward()

    def __call__(
        self, model: CausalWanModel, x: torch.Tensor, t: torch.Tensor, text: TextKV, cache: KVCache
    ) -> torch.Tensor:
        """See `CausalWanModel.forward`; the result is written over by the next call."""
        place = cache.capturable()
        if place is None:
            return model(x, t, text, cache)
        captured = self.captured
        if captured is None or captured.place != place or captured.text is not text or captured.x.shape != x.shape:
            self.captured = None  # its memory serves the next one
            self.captured = CapturedForward(place, model, x, t, text, cache)
        return self.captured(x, t)


class CapturedForward:
    """One forward of a model.

    Attributes:
        place: what the cache says of where the forward reads and writes.
        x, t: what it takes, in memory of its own.

    Raises:
        UserError: something in it cannot be captured.
    """

    def __init__(
        self, place: tuple, model: CausalWanModel, x: torch.Tensor, t: torch.Tensor, text: TextKV, cache: KVCache
    ) -> None:
        self.place, self.text = place, text
        self.x, self.t = x.clone(), t.clone()
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # frames are decoded beside it
                self.flow = model(self.x, self.t, text, cache)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an attention backend that waits for the GPU, say
            raise UserError(
                f"a forward cannot be captured as a CUDA graph ({first_line(error)}); set cuda_graphs=false"
            ) from error

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.x.copy_(x)
        self.t.copy_(t)
        self.graph.replay()
        return self.flow
