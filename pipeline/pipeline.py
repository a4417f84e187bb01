"""The pipeline: makes latent blocks, frames or a whole video of a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from pipeline.bank.bank import TransferStats, build_bank
from pipeline.config import RunConfig
from pipeline.context import ContextPolicy
from pipeline.cuda_graph import GraphedForward
from pipeline.decode import decode_stream
from pipeline.descriptors import Describe
from pipeline.frames import FrameShape
from pipeline.generation import Generation, Kept, LatentBlock
from pipeline.given import Given
from pipeline.group import Group
from pipeline.kv_cache import Cache, KVCache, ring_frames
from pipeline.latents import open_latents
from pipeline.noise import NoiseSource, SeededNoise
from pipeline.record import COMMITTED_BY, content
from pipeline.retrieval import Index, Retrieval
from pipeline.sampler import Sampler
from pipeline.samples import Sample
from pipeline.scenes import whole_plan
from pipeline.script import Script
from pipeline.selection import SELECTIONS
from pipeline.state import put_state, read_state, state_beside
from pipeline.text import Embed
from utils.errors import UserError, first_line
from utils.files import sha256
from utils.provenance import flat
from utils.tensors import digest, fingerprint, read_tensors
from wan.model import CausalWanModel
from wan.params import LatentFormat
from wan.taehv import TAEHV

Samples = str | Sample | Sequence[Sample]


@dataclass
class Pipeline:
    """A frozen backbone, ready to generate; each generation has its own cache, bank and index.

    Attributes:
        format: of the latents.
        descriptor: what frames are retrieved by; None without retrieval.
        bank_bytes: budget on the device for frames outside the window; None for the one of the settings.
        embed: prompts -> embeddings, for those that are not in `embeddings` yet.
        embeddings: prompt -> [text_len, text_dim].
        group: the processes that make each generation together.
        graphs: queue the denoising forwards of a full window as one CUDA graph.
    """

    config: RunConfig
    device: torch.device
    model: CausalWanModel
    vae: AutoencoderKLWan | TAEHV | None
    format: LatentFormat
    policy: ContextPolicy
    sampler: Sampler
    descriptor: Describe | None
    bank_bytes: int | None = None
    embed: Embed | None = None
    embeddings: dict[str, torch.Tensor] = field(default_factory=dict)
    group: Group = field(default_factory=Group)
    graphs: bool = False

    def start(self, samples: Samples, noise: NoiseSource | None = None) -> Generation:
        """One batch of samples, ready for its first block.

        Args:
            noise: where noise comes from; by default it follows from the seed and the samples' numbers.
        """
        samples = _listed(samples)
        embeds = self.prompt_embeds([sample.segments[0].prompt for sample in samples])
        generation = self.start_from(embeds, noise or self.noise_of(samples, self.config.seed))
        generation.kept = Kept(prompts=[(0, embeds, "")])
        return generation

    def restore(self, path: str | Path) -> Generation:
        """The generation that `Generation.save` wrote, by its kept state or by committing its blocks again.

        Raises:
            UserError: no such file, or its latents or embeddings are not of this pipeline's shape.
        """
        saved = read_tensors(path, "saved generation", "name a file that Generation.save wrote")
        try:
            embeds, latents = saved["embeds"], saved["latents"]
            starts = [(int(start), str(how)) for start, how in saved["starts"]]
            noise = SeededNoise(saved["seed"], [tuple(sample) for sample in saved["samples"]])
            prompts = [(start, prompt, how) for (start, how), prompt in zip(starts, embeds, strict=True)]
            generation = self.start_from(embeds[0], noise)
            if state_beside(path).exists():
                about = generation.about() | {"latents": digest(torch.cat(latents, dim=1))}
                put_state(generation, read_state(state_beside(path), about))
                generation.text = self.model.encode_text(embeds[-1].to(self.device))
                generation.kept = Kept(list(latents), prompts)
            else:
                generation.kept = Kept(prompts=prompts[:1])
                self._commit_again(generation, latents, prompts[1:])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path} is no saved generation of this model's ({first_line(error)})") from error
        return generation

    def _commit_again(
        self,
        generation: Generation,
        latents: Sequence[torch.Tensor],
        prompts: Sequence[tuple[int, torch.Tensor, str]],
    ) -> None:
        """Give a generation all its blocks and prompts; the last prompt may have no block yet."""
        for block in (*latents, None):
            for start, prompt, how in prompts:
                if start == generation.start:
                    generation.switch(prompt, how)
            if block is not None:
                generation.give(block.to(self.device))

    def start_from(
        self,
        prompt_embeds: torch.Tensor,
        noise: NoiseSource,
        index: Index | None = None,
        cache: Cache | None = None,
    ) -> Generation:
        """The same from embeddings [B, text_len, text_dim].

        Args:
            index, cache: in place of those that the config describes.
        """
        config, batch = self.config, len(prompt_embeds)
        latent = self.format.shape(config.height, config.width)
        if index is None and self.descriptor is not None:
            index = Retrieval(self.descriptor, SELECTIONS[config.model_kwargs.selection])
            index = self.group.shared(index)
        if cache is None:
            cache = self.build_cache(batch, index)
        return Generation(
            model=self.model,
            policy=self.policy,
            cache=cache,
            index=index,
            sampler=self.sampler,
            noise=noise,
            text=self.model.encode_text(prompt_embeds.to(self.device)),
            shape=(batch, config.num_frame_per_block, *latent),
            device=self.device,
            context_noise=config.context_noise,
            frames=config.num_output_frames,
            embed=self.prompt_embeds,
            about=self.about,
            graphed=GraphedForward() if self.graphs else None,
        )

    def about(self) -> dict[str, Any]:
        """What keys and values depend on beside latents, prompts and noise, as plain data."""
        told = content(self.config)
        found = flat({name: told[name] for name in COMMITTED_BY})
        found |= {"dtype": str(self.model.dtype), "device": self.device.type, "weights": fingerprint(self.model)}
        for role, path in self.config.descriptor_files().items():
            found[role] = sha256(path)
        return found

    def build_cache(self, batch: int, index: Index | None) -> KVCache:
        """The key/value cache of one generation, with a bank where its policy reaches beyond the window."""
        config, dtype = self.config, self.model.dtype
        shape = self.frame_shape(batch)
        bank = None
        if self.policy.fetched:
            leaving = leaving_frames(self.policy, config.num_output_frames)
            settings = self.policy.bank(config.bank)
            bank = build_bank(settings, index, shape.dims, leaving, dtype, self.device, self.bank_bytes)
        return KVCache(shape, self.policy, bank, self.device, dtype)

    def frame_shape(self, batch: int) -> FrameShape:
        """Keys and values of one latent frame, in this process."""
        _, height, width = self.format.shape(self.config.height, self.config.width)
        return FrameShape.of(self.model.params, height, width, batch, self.group.exchange.count)

    def blocks(
        self, samples: Samples, noise: NoiseSource | None = None, made: Sequence[Given] = ()
    ) -> Iterator[LatentBlock]:
        """Generate one batch of samples; yields each finished block of latents.

        Args:
            made: of each sample, what an interrupted run left of it.
        """
        samples = _listed(samples)
        script = Script(samples, made, self.vae)
        noise = noise or self.noise_of(samples, self.config.seed)
        past = samples[0].past
        first = noise
        if past is not None and past.seed is not None:
            first = self.noise_of(samples, past.seed)
        generation = self.start(samples, first)
        generation.kept = None  # memory does not grow with the video's length
        grid = self.config.grid(self.format.temporal)
        generation.keep_at = frozenset(grid.starts_at(self.config.keep_state, "keep_state"))
        if past is not None:
            yield from self.past(generation, samples[0], script)
            generation.renoise(noise)
        yield from self.go_on(generation, script, self.config.num_output_frames)

    def past(self, generation: Generation, sample: Sample, script: Script) -> Iterator[LatentBlock]:
        """Make a generation one that has the past that its sample begins with; yields its blocks."""
        given = sample.given[0]
        if given.state is not None:
            yield from self._recall(generation, sample, script)
        yield from self.go_on(generation, script, given.frames.stop)

    def _recall(self, generation: Generation, sample: Sample, script: Script) -> Iterator[LatentBlock]:
        """Bring a generation at once to where a state of its past was kept; yields the blocks before."""
        start, path = sample.past.state
        latents = open_latents(sample.past.path)[:start]
        state = read_state(path, self.about() | {"latents": digest(latents)})
        prompt = [scene.prompt for scene in sample.segments if scene.start < start][-1]
        generation.text = self.model.encode_text(self.prompt_embeds([prompt]).to(self.device))
        try:
            put_state(generation, state)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"kept state {path} is none of this run's ({first_line(error)}); delete it") from error
        for record in sample.past.records:
            frames = range(record["start"], record["start"] + self.policy.size(record["start"]))
            plan = whole_plan(frames, ())
            found = script.given(frames).to(self.device)
            yield LatentBlock(found, plan, None, record["tier_bytes"], TransferStats(), record=record)

    def go_on(self, generation: Generation, script: Script, end: int) -> Iterator[LatentBlock]:
        """Make a generation's blocks up to latent frame `end`, sampled or given as its script has them."""
        while generation.start < end:
            if switch := script.switch(generation.start):
                prompts, how = switch
                generation.switch(self.prompt_embeds(prompts), how)
            latents = self.group.first(script.given, generation.coming)
            yield generation.step() if latents is None else generation.give(latents.to(self.device))

    def frames(self, samples: Samples) -> Iterator[np.ndarray]:
        """Generate one batch of samples; yields each block's frames [B, T, H, W, 3] in bytes."""
        yield from decode_stream(self.vae, (block.latents for block in self.blocks(samples)))

    def video(self, sample: str | Sample) -> np.ndarray:
        """Generate one whole video [T, H, W, 3] in bytes."""
        return np.concatenate(list(self.frames(sample)), axis=1)[0]

    def noise_of(self, samples: Sequence[Sample], seed: int) -> SeededNoise:
        """The noise of some samples under a seed."""
        return SeededNoise(seed, [(sample.index, sample.number) for sample in samples])

    def prompt_embeds(self, prompts: Sequence[str]) -> torch.Tensor:
        """[len(prompts), text_len, text_dim]"""
        new = [prompt for prompt in prompts if prompt not in self.embeddings]
        if new:
            self.embeddings.update(self.embed(new))
        return torch.stack([self.embeddings[prompt] for prompt in prompts])


def leaving_frames(policy: ContextPolicy, frames: int) -> int:
    """How many frames of a video go to the bank."""
    return max(frames - ring_frames(policy) - policy.pinned, 0)


def _listed(samples: Samples) -> list[Sample]:
    if isinstance(samples, str):
        samples = Sample(samples)
    return [samples] if isinstance(samples, Sample) else list(samples)
