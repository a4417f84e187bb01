"""The pipeline: makes latent blocks, frames or a whole video of a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from pipeline import build
from pipeline.config import RunConfig, load_config
from pipeline.decode import decode_stream
from pipeline.kv_cache import KVCache, ring_frames
from pipeline.memory import build_memory
from pipeline.noise import NoiseSource, SeededNoise
from pipeline.retrieval import SELECTIONS, Descriptor, Retrieval
from pipeline.rollout import LatentBlock, rollout
from wan.model import CausalWanModel
from wan.tiny_vae import TinyVAE


@dataclass(frozen=True)
class Sample:
    """One video to make: a prompt, its number, and which of the prompt's samples it is."""

    prompt: str
    index: int = 0
    number: int = 0


Samples = str | Sample | Sequence[Sample]


@dataclass
class Pipeline:
    """A frozen backbone, ready to generate; each generation has its own cache, memory and index.

    Attributes:
        descriptor: what frames are retrieved by; None without retrieval.
        embeddings: prompt -> [text_len, text_dim], filled as prompts come.
    """

    config: RunConfig
    device: torch.device
    model: CausalWanModel
    vae: AutoencoderKLWan | TinyVAE
    descriptor: Descriptor | None
    embeddings: dict[str, torch.Tensor] = field(default_factory=dict)

    def blocks(self, samples: Samples, noise: NoiseSource | None = None) -> Iterator[LatentBlock]:
        """Generate one batch of samples; yields each finished block of latents.

        Args:
            noise: where noise comes from; by default it follows from the seed and the samples' numbers.
        """
        samples = _listed(samples)
        text = self._prompt_embeds([sample.prompt for sample in samples])
        noise = noise or SeededNoise(self.config.seed, [(sample.index, sample.number) for sample in samples])
        yield from self.blocks_of(text, noise)

    def blocks_of(self, prompt_embeds: torch.Tensor, noise: NoiseSource) -> Iterator[LatentBlock]:
        """Generate from embeddings [B, text_len, text_dim]; yields each finished block of latents."""
        config, params = self.config, self.model.params
        frame_shape = build.latent_shape(config, params)
        policy = build.build_policy(config)
        batch, retrieval, memory = len(prompt_embeds), None, None
        if self.descriptor is not None:
            retrieval = Retrieval(self.descriptor, SELECTIONS[config.model_kwargs.selection])
            tokens = params.tokens_per_frame(*frame_shape[1:])
            frame = (batch, 2, params.num_layers, tokens, params.num_heads, params.head_dim)
            leaving = max(config.num_output_frames - ring_frames(policy) - policy.layout.sink, 0)
            memory = build_memory(config.bank, retrieval, frame, leaving, self.model.dtype, self.device)
        cache = KVCache(params, policy, *frame_shape[1:], batch, memory, self.device, self.model.dtype)
        yield from rollout(
            self.model,
            prompt_embeds.to(self.device),
            policy,
            cache,
            retrieval,
            build.build_sampler(config),
            noise,
            config.num_output_frames,
            frame_shape,
            config.context_noise,
        )

    def frames(self, samples: Samples) -> Iterator[np.ndarray]:
        """Generate one batch of samples; yields each block's frames [B, T, H, W, 3] in bytes."""
        yield from decode_stream(self.vae, (block.latents for block in self.blocks(samples)))

    def video(self, sample: str | Sample) -> np.ndarray:
        """Generate one whole video [T, H, W, 3] in bytes."""
        return np.concatenate(list(self.frames(sample)), axis=1)[0]

    def _prompt_embeds(self, prompts: Sequence[str]) -> torch.Tensor:
        new = [prompt for prompt in prompts if prompt not in self.embeddings]
        if new:
            self.embeddings.update(build.embed(self.config, new))
        return torch.stack([self.embeddings[prompt] for prompt in prompts])


def load(config: str | Path | RunConfig, prompts: Sequence[str] = (), **overrides: Any) -> Pipeline:
    """Build the pipeline that a config describes.

    Args:
        config: a YAML file, or settings from `load_config`.
        prompts: encoded before the other weights are loaded, so that the two need not fit at once.
        overrides: replace the file's settings; nested ones as in `model_kwargs={"memory_size": 4}`.

    Raises:
        UserError: anything that does not fit, before any work is done.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config, overrides)
    elif overrides:
        raise TypeError("settings are frozen: give the overrides to load_config")
    config = build.check(config)
    embeddings = build.embed(config, prompts) if prompts else {}
    device, dtype = build.placement(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what names no device means this one
    model = build.build_model(config, device, dtype)
    descriptor = build.build_descriptor(config, model.params, device)
    vae = build.build_vae(config, device, dtype)
    return Pipeline(config, device, model, vae, descriptor, embeddings)


def _listed(samples: Samples) -> list[Sample]:
    if isinstance(samples, str):
        samples = Sample(samples)
    return [samples] if isinstance(samples, Sample) else list(samples)
