"""Builds the parts of a pipeline from what preflight found."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.autoencoders import AUTOENCODERS, VAE
from pipeline.config import RunConfig, load_config
from pipeline.cuda_graph import can_capture
from pipeline.group import Group
from pipeline.offload import offload_text_encoder, offload_transformer, quantize
from pipeline.pipeline import Pipeline
from pipeline.preflight import Preflight, model_folder, preflight
from pipeline.prompts import Prompt
from pipeline.sampler import SAMPLERS, FlowSchedule, Sampler
from pipeline.samples import Sample
from pipeline.text import TextCache, encode_prompts, fingerprint, note_of_cuts
from utils.tensors import keep_freed_memory
from wan.checkpoint import load_generator
from wan.lora import add_loras
from wan.model import CausalWanModel
from wan.params import LatentFormat, read_text_len
from wan.text_encoder import TextEncoder


def load(
    config: str | Path | RunConfig | Preflight,
    prompts: Sequence[str] = (),
    group: Group | None = None,
    **overrides: Any,
) -> Pipeline:
    """Build the pipeline that a config describes.

    Args:
        config: a YAML file, settings from `load_config`, or what `preflight` found for them.
        prompts: encoded before the other weights are loaded, so that the two need not fit at once.
        group: the processes that make each video together; without one, this one alone.
        overrides: replace the file's settings; nested ones as in `model_kwargs={"memory_size": 4}`.

    Raises:
        UserError: anything that does not fit, before any work is done.
    """
    if isinstance(config, str | Path):
        config = load_config(config, overrides)
    elif overrides:
        raise TypeError("settings are frozen: give the overrides to load_config")
    found = config if isinstance(config, Preflight) else preflight(config)
    config = found.config
    group = group or Group()
    embeddings = group.first(embed, found, prompts) if prompts else {}
    if found.device.type == "cuda":
        torch.cuda.set_device(found.device)  # what names no device means this one
    else:
        keep_freed_memory()
    model = build_model(config, found.device, found.dtype)
    model.share(group.exchange)
    decoder = AUTOENCODERS[config.vae]
    vae = decoder.load(found.files[decoder.role], found.device, found.dtype) if group.leads else None
    pipeline = assemble(config, model, found.format, found.device, vae)
    pipeline.bank_bytes = found.bank_bytes
    pipeline.embed = partial(group.first, embed, found)
    pipeline.embeddings, pipeline.group = embeddings, group
    pipeline.graphs = can_capture(config, found.device.type == "cuda")
    return pipeline


def assemble(
    config: RunConfig, model: CausalWanModel, format: LatentFormat, device: torch.device, vae: VAE | None = None
) -> Pipeline:
    """The pipeline of a model that is there already; without a VAE it makes latents, from embeddings alone."""
    descriptor = config.descriptor()
    return Pipeline(
        config=config,
        device=device,
        model=model,
        vae=vae,
        format=format,
        policy=config.policy(),
        sampler=build_sampler(config),
        descriptor=descriptor and descriptor.load(format.shape(config.height, config.width), device),
    )


def build_model(config: RunConfig, device: torch.device, dtype: torch.dtype) -> CausalWanModel:
    """The frozen transformer with its LoRA, if any, kept as `weights` and `memory` say."""
    offload = config.preset.offload and device.type == "cuda"
    stay = offload or config.weights != "same"  # made smaller before they meet the GPU
    place = torch.device("cpu") if stay else device
    model = load_generator(config.generator_ckpt, config.model_name, model_folder(config), config.use_ema, place, dtype)
    if loras := config.loras():
        adapter = config.adapter
        if adapter is None:
            add_loras(model, loras)
        else:
            add_loras(model, loras, adapter.rank, adapter.alpha, adapter.merge)
    model.set_attention_backend(config.attention_backend)
    quantize(model, config.weights)
    if not offload:
        model.to(device)
        if config.weights == "same":  # in fewer bits, each linear has a way of its own to compute
            model.fuse_projections()
    if config.compile:
        model.compile_blocks()
    if offload:
        offload_transformer(model, device)
    return model


def build_sampler(config: RunConfig) -> Sampler:
    """The sampler that the config describes."""
    schedule = FlowSchedule(config.model_kwargs.timestep_shift)
    steps = schedule.steps(config.denoising_step_list, config.warp_denoising_step)
    return Sampler(schedule, steps, SAMPLERS[config.sampler])


def cut_prompts(found: Preflight, samples: Sequence[Sample]) -> str | None:
    """A note of the prompts that are longer than the text encoder reads."""
    prompts: dict[Prompt, None] = {}
    for sample in samples:
        for text in sample.prompts:
            prompts[Prompt(sample.index, text)] = None
    return note_of_cuts(list(prompts), found.files["tokenizer"], read_text_len(model_folder(found.config)))


def embed(found: Preflight, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Each prompt's embedding [text_len, text_dim], from the cache or from the text encoder, which is freed again."""
    config, device, dtype = found.config, found.text_device, found.dtype
    files = found.files["text encoder"], found.files["tokenizer"]
    text_len = read_text_len(model_folder(config))
    offload = config.preset.offload and device.type == "cuda"
    cache = None
    if config.text_cache:
        cache = TextCache(Path(config.text_cache).expanduser(), f"{fingerprint(files)} {text_len} {dtype}")

    def load_encoder() -> TextEncoder:
        encoder = TextEncoder(*files, text_len, "cpu" if offload else device, dtype)
        if offload:
            offload_text_encoder(encoder, device)
        return encoder

    embeddings = encode_prompts(load_encoder, prompts, cache)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # pieces of the encoder's sizes, for buffers of others
    return embeddings
