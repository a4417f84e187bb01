"""The plain way to serve a context: the oracle that the cache is tested against, and its baseline in benchmarks."""

import torch

from pipeline.context import ContextPlan
from wan.rope import rope_table, rotate


class PlainCache:
    """Keeps all keys and values on the host; each forward uploads, concatenates and rotates what it attends to.

    Implements `wan.model.Context` and what the rollout asks of a cache.

    Args:
        grid: height and width of a frame in tokens.
        device: where the forwards run.
    """

    memory = None

    def __init__(self, grid: tuple[int, int], device: torch.device | str = "cpu") -> None:
        self.grid, self.device = grid, device
        self.frames: dict[tuple[int, int], torch.Tensor] = {}  # (layer, frame) -> [2, B, tokens, heads, head_dim]

    def held(self, frames: range) -> list[int]:
        return [frame for frame in frames if (0, frame) in self.frames]

    def recall(self, memory: object) -> None:
        """Nothing is fetched ahead of time."""

    def begin(self, plan: ContextPlan) -> None:
        self.plan = plan

    def join(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `wan.model.Context`."""
        plan, tokens = self.plan, self.grid[0] * self.grid[1]
        for index, frame in enumerate(plan.own):
            own = slice(index * tokens, (index + 1) * tokens)
            self.frames[layer, frame] = torch.stack([k[:, own], v[:, own]]).cpu()
        samples = []
        for sample in range(len(q)):
            parts = [self.frames[layer, frame][:, sample].to(self.device) for frame in plan.attended(sample)]
            samples.append(torch.cat(parts, dim=1))
        keys, values = torch.stack(samples, dim=1)
        table = rope_table(plan.positions, *self.grid, q.shape[-1], self.device)
        return rotate(q, tuple(part[-q.shape[1] :] for part in table)), rotate(keys, table), values
