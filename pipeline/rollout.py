"""The rollout: a generator of latent blocks, each planned, denoised in its context, committed and indexed."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.context import ContextPlan, ContextPolicy
from pipeline.kv_cache import KVCache
from pipeline.noise import NoiseSource
from pipeline.retrieval import Retrieval, Selection
from pipeline.sampler import Sampler
from wan.model import CausalWanModel


@dataclass(frozen=True)
class LatentBlock:
    """A finished block.

    Attributes:
        latents: [B, F, C, H, W]
        plan: what it attended to.
        selection: what was retrieved for it; None where nothing could be.
        memory_bytes: host memory that holds the frames outside the window.
    """

    latents: torch.Tensor
    plan: ContextPlan
    selection: Selection | None
    memory_bytes: int


@torch.inference_mode()
def rollout(
    model: CausalWanModel,
    prompt_embeds: torch.Tensor,
    policy: ContextPolicy,
    cache: KVCache,
    retrieval: Retrieval | None,
    sampler: Sampler,
    noise: NoiseSource,
    frames: int,
    frame_shape: tuple[int, int, int],
    context_noise: float = 0.0,
) -> Iterator[LatentBlock]:
    """Generate `frames` latent frames of `frame_shape` [C, H, W], block by block.

    Args:
        prompt_embeds: [B, text_len, text_dim] on the model's device.
        context_noise: timestep of the forward that leaves a finished block's keys and values.

    `cache` and `retrieval` belong to this one generation and must be fresh.
    """
    batch, device = len(prompt_embeds), prompt_embeds.device
    text = model.encode_text(prompt_embeds)
    size = policy.layout.block
    shape = (batch, size, *frame_shape)
    clean_timestep = torch.full((batch, 1), float(context_noise), device=device)

    def flow(x: torch.Tensor, timestep: float) -> torch.Tensor:
        return model(x, torch.full((batch, 1), timestep, device=device), text, cache).float()

    for block, start in enumerate(range(0, frames, size)):

        def fresh(step: int, block: int = block) -> torch.Tensor:
            return noise.draw(block, step, shape).to(device)

        candidates = policy.candidates(start)
        selection = retrieval.select(candidates, policy.layout.memory) if retrieval and candidates else None
        plan = policy.plan(start, selection.frames if selection else ())
        cache.begin(plan)
        latents = sampler(flow, fresh(0), lambda step: fresh(step + 1))
        if retrieval:
            retrieval.add(latents)
        model(latents, clean_timestep, text, cache)  # leaves the block's keys and values in the cache
        yield LatentBlock(latents, plan, selection, cache.memory.nbytes if cache.memory else 0)
