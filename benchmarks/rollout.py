"""One method's generation on random weights, taken a block at a time."""

from typing import TYPE_CHECKING

import torch

from benchmarks.flops import block_flops
from benchmarks.random_models import format_of, make_text
from pipeline.bank.bank import build_bank
from pipeline.cuda_graph import GraphedForward
from pipeline.descriptors import AvgPool
from pipeline.frames import FrameShape
from pipeline.generation import Generation, LatentBlock
from pipeline.kv_cache import KVCache
from pipeline.noise import SeededNoise
from pipeline.pipeline import leaving_frames
from pipeline.plain import PlainCache
from pipeline.policies import RetrievedMemory, SlidingWindow
from pipeline.retrieval import Retrieval
from pipeline.sampler import FlowSchedule, Sampler
from wan.model import CausalWanModel

if TYPE_CHECKING:
    from benchmarks.run import BenchmarkConfig

WARMUP = 10  # blocks after which window and memory slots are full and the first retrieval is done
PLAIN = ", plain"  # ends the names of methods that run the plain way


class Rollout:
    """A generation.

    Args:
        blocks: that will be made of it.

    Attributes:
        flops: of a block's products and attention, of all samples.
        copied: bytes that moved into, out of and between the bank's tiers, for each block.
    """

    def __init__(
        self,
        name: str,
        blocks: int,
        config: "BenchmarkConfig",
        model: CausalWanModel,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        params, batch = model.params, config.batch_size
        latent = format_of(config.size).shape(config.height, config.width)
        retrieves = name.startswith("latentmem")
        policy = RetrievedMemory() if retrieves else SlidingWindow()
        frames = policy.block * blocks
        shape = FrameShape.of(params, *latent[1:], batch)
        self.index = Retrieval(AvgPool().load(latent, device)) if retrieves else None
        if name.endswith(PLAIN):
            self.cache = PlainCache(shape, device)
        else:
            leaving = leaving_frames(policy, frames)
            bank = None
            if retrieves:
                bank = build_bank(config.bank, self.index, shape.dims, leaving, dtype, device)
            self.cache = KVCache(shape, policy, bank, device, dtype)
        schedule = FlowSchedule()
        steps = schedule.steps([1000 - i * 1000 // config.steps for i in range(config.steps)], warp=True)
        text = make_text(params, batch, device, dtype)
        graphs = config.cuda_graphs and device.type == "cuda" and not name.endswith(PLAIN) and not config.compile
        self.device = device
        self.flops = block_flops(params, shape.tokens(), policy.local_attn_size, config.steps) * batch
        self.copied: list[int] = []
        self.generation = Generation(
            model=model,
            policy=policy,
            cache=self.cache,
            index=self.index,
            sampler=Sampler(schedule, steps),
            noise=SeededNoise(config.seed, [(i, 0) for i in range(batch)]),
            text=model.encode_text(text),
            shape=(batch, policy.block, *latent),
            device=device,
            frames=frames,
            graphed=GraphedForward() if graphs else None,
        )

    def step(self) -> LatentBlock:
        block = self.generation.step()
        self.copied.append(block.transfers.bytes)
        return block

    def bytes_moved(self) -> int:
        """Read and written so far in this block: records of the bank, and frames put into the context."""
        if isinstance(self.cache, PlainCache):
            return 0
        bank = self.cache.bank
        return 2 * (self.cache.context.written + (bank.transfers.bytes if bank else 0))
