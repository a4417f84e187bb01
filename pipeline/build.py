"""From a config to the parts of a pipeline; what cannot work is refused before any work is done."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from ae.model import load_encoder
from pipeline.config import RunConfig
from pipeline.context import POLICIES, ContextPolicy
from pipeline.memory_plan import PRESETS
from pipeline.offload import FORMS, offload_text_encoder, offload_transformer, require, shrink
from pipeline.retrieval import DESCRIPTORS, SELECTIONS, Descriptor
from pipeline.sampler import FlowSchedule, Sampler
from pipeline.survey import survey
from pipeline.text import TextCache, encode_prompts, fingerprint
from utils.errors import UserError
from utils.files import require_file
from utils.settings import require_choice
from utils.tensors import DOWNLOAD
from wan.attention import find_backend
from wan.checkpoint import add_lora, load_generator
from wan.model import CausalWanModel
from wan.params import WanParams, read_text_len
from wan.text_encoder import TextEncoder, find_text_encoder
from wan.tiny_vae import REMEDY, TinyVAE, load_tiny_vae
from wan.vae import find_vae, load_vae


def check(config: RunConfig) -> RunConfig:
    """Refuse all that can be known to be wrong, the content of the weight files included.

    Returns:
        The config with what follows from the machine filled in: the memory preset's budget on the device.
    """
    build_sampler(config)
    device, dtype = placement(config)
    require_choice("model_kwargs.compression_method", config.model_kwargs.compression_method, DESCRIPTORS)
    require_choice("model_kwargs.selection", config.model_kwargs.selection, SELECTIONS)
    require_choice("weights", config.weights, FORMS)
    require(config.weights)
    find_backend(config.attention_backend)
    files = weight_files(config)
    for role, path in files.items():
        if not path.is_dir():
            require_file(path, f"{role} file", REMEDY if role == "tiny_vae_ckpt" else DOWNLOAD)
    found = survey(config, files, build_policy(config), device, text_device(config), dtype)
    build_descriptor(config, found.params, torch.device("cpu"))
    if wrong := found.plan.fault():
        raise UserError(wrong)
    return replace(config, bank=replace(config.bank, device_gb=found.bank_device_gb))


def weight_files(config: RunConfig) -> dict[str, Path]:
    """Role -> file or folder of everything a run reads its weights from."""
    folder = model_folder(config)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist; {DOWNLOAD}")
    encoder, tokenizer = find_text_encoder(folder)
    files = {"generator_ckpt": Path(config.generator_ckpt), "text encoder": encoder, "tokenizer": tokenizer}
    if config.vae == "tiny":
        files["tiny_vae_ckpt"] = Path(config.tiny_vae_ckpt)
    else:
        files["VAE"] = find_vae(folder)
    if config.lora_ckpt:
        files["lora_ckpt"] = Path(config.lora_ckpt)
    if config.layout().memory and config.model_kwargs.compression_method == "ae":
        files["ae_ckpt"] = Path(config.model_kwargs.ae_ckpt)
    return files


def model_folder(config: RunConfig) -> Path:
    return Path(config.model_root) / config.model_name


def placement(config: RunConfig) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to run in; under torchrun each process has the GPU of its local rank."""
    device = find_device(config.device)
    auto = "bfloat16" if device.type == "cuda" else "float32"
    return device, getattr(torch, auto if config.dtype == "auto" else config.dtype)


def find_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to a device that exists."""
    require_choice("device", name, ("auto", "cpu", "cuda"))
    count = torch.cuda.device_count()
    asked = os.environ.get("GPU")
    if name == "cpu" or (name == "auto" and not count and not asked):
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if rank >= count:
        wish = f"GPU={asked}" if asked else f"device '{name}'"
        raise UserError(f"{wish} asks for more than the {count} GPUs that can be used; name others, or set device=cpu")
    return torch.device("cuda", rank)


def text_device(config: RunConfig) -> torch.device:
    """Where prompts are encoded."""
    return find_device(config.device if config.text_device == "auto" else config.text_device)


def build_model(config: RunConfig, device: torch.device, dtype: torch.dtype) -> CausalWanModel:
    """The frozen transformer with its LoRA, if any, kept as `weights` and `memory` say."""
    offload = PRESETS[config.memory].offload and device.type == "cuda"
    model = load_generator(
        config.generator_ckpt,
        config.model_name,
        model_folder(config),
        config.use_ema,
        "cpu" if offload or config.weights != "same" else device,  # made smaller before it meets the GPU
        dtype,
    )
    if config.lora_ckpt:
        add_lora(model, config.lora_ckpt, config.adapter.rank, config.adapter.alpha, config.adapter.merge)
    model.set_attention_backend(config.attention_backend)
    shrink(model, config.weights)
    if not offload:
        model.to(device)
    if config.compile:
        model.compile_repeated_blocks(dynamic=True)
    if offload:
        offload_transformer(model, device)
    return model


def build_vae(config: RunConfig, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan | TinyVAE:
    """The frozen video autoencoder, or the tiny decoder in its place."""
    if config.vae == "tiny":
        return load_tiny_vae(config.tiny_vae_ckpt, device, dtype)
    return load_vae(find_vae(model_folder(config)), device, dtype)


def build_policy(config: RunConfig) -> ContextPolicy:
    """The context policy that the config names."""
    return POLICIES[config.model_kwargs.policy_name].build(config.layout(), config.model_kwargs)


def build_descriptor(config: RunConfig, params: WanParams, device: torch.device) -> Descriptor | None:
    """The frame descriptor that the config names; None without retrieval."""
    kwargs = config.model_kwargs
    if not config.layout().memory:
        return None
    if kwargs.compression_method == "ae":
        return DESCRIPTORS["ae"](load_encoder(kwargs.ae_ckpt, device, latent_shape(config, params)))
    return DESCRIPTORS[kwargs.compression_method]()


def build_sampler(config: RunConfig) -> Sampler:
    """The few-step sampler that the config describes."""
    schedule = FlowSchedule(config.model_kwargs.timestep_shift)
    return Sampler(schedule, schedule.steps(config.denoising_step_list, config.warp_denoising_step))


def embed(config: RunConfig, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Each prompt's embedding [text_len, text_dim], from the cache or from the text encoder, which is freed again."""
    device, (_, dtype), folder = text_device(config), placement(config), model_folder(config)
    files, text_len = find_text_encoder(folder), read_text_len(folder)
    offload = PRESETS[config.memory].offload and device.type == "cuda"
    cache = None
    if config.text_cache:
        cache = TextCache(Path(config.text_cache).expanduser(), f"{fingerprint(files)} {text_len} {dtype}")

    def load_encoder() -> TextEncoder:
        encoder = TextEncoder(*files, text_len, "cpu" if offload else device, dtype)
        if offload:
            offload_text_encoder(encoder.model.encoder, device)
        return encoder

    return encode_prompts(load_encoder, prompts, cache)


def latent_shape(config: RunConfig, params: WanParams) -> tuple[int, int, int]:
    """[C, H, W] of a latent frame; Wan's autoencoders shrink height and width by 8."""
    return params.in_dim, config.height // 8, config.width // 8


def describe(config: RunConfig) -> str:
    """The context in one line and the plan of memory as a table, for a person."""
    kwargs, layout = config.model_kwargs, config.layout()
    device, dtype = placement(config)
    found = survey(config, weight_files(config), build_policy(config), device, text_device(config), dtype)
    local = layout.window - layout.sink - layout.memory
    retrieved, between = "", ""
    if layout.memory:
        retrieved = f" | {layout.memory} retrieved by {kwargs.compression_method} ({kwargs.selection})"
        frames = layout.block + layout.memory + layout.recent_exclude
        between = f"; {frames} frames before them are neither attended to nor retrievable yet"
    return (
        f"context: [sink {layout.sink}{retrieved} | local {local}] latent frames, the {layout.block} new ones "
        f"included{between}\nmemory ({config.memory}): {found.plan.summary()}"
    )
