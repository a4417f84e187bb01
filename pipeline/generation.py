"""One generation: a batch of videos in the making, block by block.

A block is sampled or given: `step` plans a block, denoises it in its context and commits it; `give`
commits latents that come from elsewhere. The keys and values that later blocks read follow from a
block's latents and its context alone.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.bank.bank import TransferStats
from pipeline.context import ContextPlan, ContextPolicy, Piece
from pipeline.cuda_graph import GraphedForward
from pipeline.kv_cache import Cache
from pipeline.noise import NoiseAhead, NoiseSource, SeededNoise
from pipeline.retrieval import Index, Selection
from pipeline.sampler import Sampler
from pipeline.scenes import SWITCHES, Scene, require_switch, whole_plan
from pipeline.state import GenerationState, state_beside, take_state
from utils.errors import UserError
from utils.tensors import digest, save_tensors
from wan.model import CausalWanModel, TextKV


@dataclass(frozen=True)
class LatentBlock:
    """A finished block.

    Attributes:
        latents: [B, F, C, H, W]
        plan: what it attended to.
        selection: what was retrieved for it; None where nothing could be.
        tier_bytes: what the frames outside the window take, by tier.
        transfers: what moved into, out of and between tiers for this block, and the frames that a bounded bank forgot.
        state: what the generation held after it, where that is to be kept.
        record: what is on record of it, where it was not made again.
    """

    latents: torch.Tensor
    plan: ContextPlan
    selection: Selection | None
    tier_bytes: Mapping[str, int]
    transfers: TransferStats
    state: GenerationState | None = None
    record: Mapping[str, Any] | None = None

    @property
    def memory_bytes(self) -> int:
        return sum(self.tier_bytes.values())


@dataclass
class Kept:
    """The whole course of a generation.

    Attributes:
        latents: of each block, [B, F, C, H, W] on the CPU.
        prompts: (first latent frame, embeddings [B, text_len, text_dim], rule of the switch).
    """

    latents: list[torch.Tensor] = field(default_factory=list)
    prompts: list[tuple[int, torch.Tensor, str]] = field(default_factory=list)


@dataclass
class Generation:
    """All that lives as long as one batch in the making.

    Attributes:
        policy: what each block attends to.
        cache, index: keys and values, and descriptors, of this batch alone; no index, no retrieval.
        text: keys and values of the prompts.
        shape: of a block, [B, F, C, H, W].
        context_noise: timestep of the forward that leaves a finished block's keys and values.
        frames: length of the video in latent frames; after the last one nothing is retrieved. None: no end is known.
        start: first frame of the block to come.
        selection: what was retrieved for it.
        drafted: its noise and what the first denoising step predicted of it, where a draft was made.
        embed: prompts -> their embeddings [B, text_len, text_dim].
        about: says what its keys and values depend on beside latents, prompts and seed, as plain data.
        keep_at: latent frames before which its state is taken, to be kept.
        graphed: queues the denoising forwards as one graph; None: kernel by kernel.
        scene: how plans differ since the prompt was switched.
        recent: the latest latents, as many as the window has, to make their keys and values again.
        kept: all latents so far, on the CPU, and the prompts with their starts, to be saved; None where nobody asks.
    """

    model: CausalWanModel
    policy: ContextPolicy
    cache: Cache
    index: Index | None
    sampler: Sampler
    noise: NoiseSource
    text: TextKV
    shape: tuple[int, int, int, int, int]
    device: torch.device
    context_noise: float = 0.0
    frames: int | None = None
    start: int = field(default=0, init=False)
    selection: Selection | None = field(default=None, init=False)
    drafted: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, init=False)
    scene: Scene = field(default=Scene(), init=False)
    recent: torch.Tensor | None = field(default=None, init=False)
    embed: Callable[[Sequence[str]], torch.Tensor] | None = None
    kept: Kept | None = None
    about: Callable[[], dict[str, Any]] = dict
    keep_at: frozenset[int] = frozenset()
    graphed: GraphedForward | None = None

    def __post_init__(self) -> None:
        if self.device.type == "cuda" and isinstance(self.noise, SeededNoise):
            self.noise = NoiseAhead(self.noise, self.device)

    @property
    def coming(self) -> range:
        """The latent frames of the block to come."""
        return range(self.start, self.start + self.policy.size(self.start))

    @torch.no_grad()  # not inference mode, in which torchao's weights cannot change device
    def begin(self) -> ContextPlan:
        """Plan the block to come and assemble what it attends to."""
        for forward in self.policy.before(self.start):
            self._again(forward)
        if self.policy.query == "draft":
            self._choose_by_draft()
        return self._assemble()

    def _assemble(self) -> ContextPlan:
        plan = self.policy.plan(self.start, self.selection.frames if self.selection else ())
        plan = self.scene.adapt(plan)
        self.cache.begin(plan)
        return plan

    @torch.no_grad()
    def denoise(self, plan: ContextPlan) -> torch.Tensor:
        """Sample the planned block's latents [B, F, C, H, W]."""

        def renoise(step: int) -> torch.Tensor:
            return self._noise(plan, step + 1)

        if self.drafted is None:
            return self.sampler(self._flow, self._noise(plan, 0), renoise)
        (noise, first), self.drafted = self.drafted, None

        def flow(x: torch.Tensor, timestep: float) -> torch.Tensor:
            return first if x is noise else self._flow(x, timestep)

        return self.sampler(flow, noise, renoise)

    @torch.no_grad()
    def commit(self, latents: torch.Tensor, plan: ContextPlan) -> LatentBlock:
        """Finish the planned block with these latents, [B, F, C, H, W], sampled or given.

        Indexes them, leaves their keys and values in the cache, chooses what the next block retrieves and starts to
        fetch it. A GPU has the forward to do while the host waits for what is similar.
        """
        chosen = self.selection
        self.start += len(plan.own)
        self._remember(latents)
        self.cache.commit(self.policy.commit(plan))
        if self.index is not None:
            self.index.add(latents)
        self._leave(latents, self.context_noise)
        self.choose()
        state = take_state(self) if self.start in self.keep_at else None
        return LatentBlock(latents, plan, chosen, self.cache.tier_bytes, self.cache.pop_transfers(), state)

    def step(self) -> LatentBlock:
        """Sample the next block."""
        plan = self.begin()
        return self.commit(self.denoise(plan), plan)

    def give(self, latents: torch.Tensor) -> LatentBlock:
        """Take the next block as it is given, [B, F, C, H, W] on the generation's device."""
        return self.take(latents, self.begin())

    @torch.no_grad()
    def take(self, latents: torch.Tensor, plan: ContextPlan) -> LatentBlock:
        """Finish the planned block as it is given."""
        if self.policy.looks_at_noise:  # what later blocks see depends on the forward that would have sampled it
            self._leave(self._noise(plan, 0), self.sampler.timesteps[0])
        return self.commit(latents, plan)

    @torch.no_grad()
    def switch(self, prompt: str | Sequence[str] | torch.Tensor, how: str = "text") -> None:
        """Go on under another prompt.

        Args:
            prompt: one for all samples, one for each, or their embeddings [B, text_len, text_dim].
            how: a name in `pipeline.scenes.SWITCHES`.

        Raises:
            UserError: no such rule.
        """
        require_switch(self.policy, how)
        prompt_embeds = prompt
        if not isinstance(prompt, torch.Tensor):
            prompt_embeds = self.embed([prompt] * self.shape[0] if isinstance(prompt, str) else prompt)
        self.text = self.model.encode_text(prompt_embeds.to(self.device))
        if self.kept is not None:
            self.kept.prompts.append((self.start, prompt_embeds.cpu(), how))
        self.scene = replace(self.scene, first=self.start)
        if not self.policy.memory_across_scenes:
            self.selection = None
        SWITCHES[how](self)

    def fork(self, noise: NoiseSource | None = None) -> "Generation":
        """Another generation with the same past, as if it had been made twice; the two go on apart.

        Keys, values and descriptors are copied, the models are shared.

        Args:
            noise: where the other's noise comes from, in place of this one's.
        """
        shared = [self.model, self.policy, self.sampler, self.noise, self.embed, self.about]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies are on their way between host and device
        twin = copy.deepcopy(self, {id(part): part for part in shared})
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # a fetch into the twin's memory may wait for an earlier moment alone
        if noise is not None:
            twin.renoise(noise)
        return twin

    @torch.no_grad()
    def renoise(self, noise: NoiseSource) -> None:
        """Take noise from elsewhere from now on."""
        self.noise = noise
        self.__post_init__()
        if self.selection is not None:
            self.choose()  # which may be by chance

    def save(self, path: str | Path, keep_state: bool = False) -> None:
        """Write what brings this generation back: its latents, its prompts and its seed; see `Pipeline.restore`.

        Args:
            keep_state: write its keys and values beside that, into `NAME.state.safetensors`, with which it is back at
                once.

        Raises:
            UserError: its latents are not kept or its noise follows from no seed, or the file cannot be written.
        """
        noise = self.noise.source if isinstance(self.noise, NoiseAhead) else self.noise
        if self.kept is None or not isinstance(noise, SeededNoise):
            raise UserError("this generation keeps no latents to be saved; start it by Pipeline.start")
        starts = [[start, how] for start, _, how in self.kept.prompts]
        embeds = [embeds for _, embeds, _ in self.kept.prompts]
        content = {"latents": list(self.kept.latents), "embeds": embeds, "starts": starts, "seed": noise.seed}
        save_tensors(path, content | {"samples": [list(sample) for sample in noise.samples]})
        beside = state_beside(path)
        beside.unlink(missing_ok=True)
        if keep_state:
            take_state(self).save(beside, self.about() | {"latents": digest(torch.cat(self.kept.latents, dim=1))})

    @torch.no_grad()
    def recommit(self, frames: range, past: tuple[Piece, ...] = ()) -> None:
        """Make the keys and values of recent frames again, under the present prompt, all in view of each other.

        Args:
            past: what else they see.
        """
        if not frames:
            return
        self._again(whole_plan(frames, past))

    def _again(self, plan: ContextPlan) -> None:
        """One more clean forward over finished frames, the plan's own."""
        oldest = self.start - self.recent.shape[1]
        first = plan.start - oldest
        self.cache.commit(plan)
        self._leave(self.recent[:, first : first + len(plan.own)], self.context_noise)

    def _remember(self, latents: torch.Tensor) -> None:
        if self.kept is not None:
            self.kept.latents.append(latents.cpu())
        known = latents if self.recent is None else torch.cat([self.recent, latents], dim=1)
        self.recent = known[:, -self.policy.local_attn_size :]

    def _flow(self, x: torch.Tensor, timestep: float) -> torch.Tensor:
        forward = self.model if self.graphed is None else partial(self.graphed, self.model)
        return forward(x, _times(x, timestep), self.text, self.cache).float()

    def _leave(self, x: torch.Tensor, timestep: float) -> None:
        self.model.leave(x, _times(x, timestep), self.text, self.cache)

    def _noise(self, plan: ContextPlan, step: int) -> torch.Tensor:
        batch, _, *latent = self.shape
        drawn = self.noise.draw(self.policy.number(plan.start), step, (batch, len(plan.own), *latent))
        if self.device.type == "cuda":
            drawn = drawn.pin_memory()  # the copy runs beside the GPU instead of waiting for it
        return drawn.to(self.device, non_blocking=True)

    def choose(self) -> None:
        """Choose what the next block retrieves and start to fetch it, unless it is chosen by a draft when it begins."""
        if self.policy.query != "draft":
            self._retrieve()

    def _choose_by_draft(self) -> None:
        """Choose what is like a draft of the block to come: its last frame after the first denoising step.

        That step sees no memory. The others see what it found.
        """
        self.selection = self.drafted = None
        if not self._candidates():
            return
        noise = self._noise(self._assemble(), 0)
        flow = self._flow(noise, self.sampler.timesteps[0])
        self.drafted = noise, flow
        self._retrieve(self.sampler.draft(flow, noise)[:, -1:])

    def _retrieve(self, draft: torch.Tensor | None = None) -> None:
        """Choose some of the candidates and start to fetch them."""
        self.selection = None
        if candidates := self._candidates():
            rngs = self.noise.rngs(self.policy.number(self.start))
            self.selection = self.index.select(candidates, self.policy.memory_size, rngs, draft)
        if self.selection:
            self.cache.prefetch(self.selection.frames)

    def _candidates(self) -> list[int]:
        """The frames that the block to come may retrieve."""
        if self.index is None or (self.frames is not None and self.start >= self.frames):
            return []
        reach = self.policy.candidates(self.start)
        if not self.policy.memory_across_scenes:
            reach = range(min(max(reach.start, self.scene.first), reach.stop), reach.stop)
        return self.cache.available(reach)


def _times(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """One timestep for all frames of each sample, [B, 1]."""
    return torch.full((len(x), 1), float(timestep), device=x.device)
