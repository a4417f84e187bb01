"""The rollout: a generator of latent blocks, each planned, denoised in its context, committed and indexed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from pipeline.context import ContextPlan, ContextPolicy
from pipeline.kv_cache import KVCache
from pipeline.memory import Traffic
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
        tier_bytes: what the frames outside the window take, by tier.
        copies, copied_bytes: records that moved into, out of and between tiers for this block.
        dropped: frames that a bounded bank forgot.
    """

    latents: torch.Tensor
    plan: ContextPlan
    selection: Selection | None
    tier_bytes: Mapping[str, int] = field(default_factory=dict)
    copies: int = 0
    copied_bytes: int = 0
    dropped: tuple[int, ...] = ()

    @property
    def memory_bytes(self) -> int:
        return sum(self.tier_bytes.values())


@torch.no_grad()  # not inference mode, in which torchao's weights cannot change device
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

    def choose(start: int) -> Selection | None:
        candidates = cache.held(policy.candidates(start)) if retrieval else []
        return retrieval.select(candidates, policy.layout.memory) if candidates else None

    selection = None
    for block, start in enumerate(range(0, frames, size)):

        def fresh(step: int, block: int = block) -> torch.Tensor:
            drawn = noise.draw(block, step, shape)
            if device.type == "cuda":
                drawn = drawn.pin_memory()  # the copy runs beside the GPU instead of waiting for it
            return drawn.to(device, non_blocking=True)

        plan = policy.plan(start, selection.frames if selection else ())
        cache.begin(plan)
        latents = sampler(flow, fresh(0), lambda step: fresh(step + 1))
        chosen = selection
        if retrieval:
            retrieval.add(latents)
            selection = choose(start + size) if start + size < frames else None
            if selection:
                cache.recall(selection.frames)
        model(latents, clean_timestep, text, cache)  # leaves the block's keys and values in the cache
        traffic = cache.memory.take_traffic() if cache.memory else Traffic()
        held = cache.memory.tier_bytes if cache.memory else {}
        yield LatentBlock(latents, plan, chosen, held, traffic.copies, traffic.bytes, tuple(traffic.dropped))
