"""From a config to the parts of a pipeline; what cannot work is refused before weights are read."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from diffusers import AutoencoderKLWan

from ae.model import load_encoder
from pipeline.config import RunConfig
from pipeline.context import POLICIES, ContextPolicy
from pipeline.kv_cache import KVCache
from pipeline.retrieval import DESCRIPTORS, SELECTIONS, Descriptor
from pipeline.sampler import FlowSchedule, Sampler
from pipeline.text import encode_prompts
from utils.config import choose
from utils.errors import UserError
from utils.files import require_file
from utils.tensors import DOWNLOAD
from wan.checkpoint import add_lora, load_generator
from wan.model import CausalWanModel
from wan.params import WanParams, read_text_len
from wan.text_encoder import TextEncoder, find_text_encoder
from wan.vae import find_vae, load_vae


def check(config: RunConfig) -> None:
    """Refuse everything that can be known to be wrong before weights are read."""
    build_sampler(config)
    placement(config)
    choose("model_kwargs.compression_method", config.model_kwargs.compression_method, DESCRIPTORS)
    choose("model_kwargs.selection", config.model_kwargs.selection, SELECTIONS)
    for role, path in weight_files(config).items():
        if not path.is_dir():
            require_file(path, f"{role} file", DOWNLOAD)


def weight_files(config: RunConfig) -> dict[str, Path]:
    """Role -> file or folder of everything a run reads its weights from."""
    folder = model_folder(config)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist; {DOWNLOAD}")
    encoder, tokenizer = find_text_encoder(folder)
    files = {"generator_ckpt": Path(config.generator_ckpt), "text encoder": encoder, "tokenizer": tokenizer}
    files["VAE"] = find_vae(folder)
    if config.lora_ckpt:
        files["lora_ckpt"] = Path(config.lora_ckpt)
    if config.model_kwargs.use_latentmem and config.model_kwargs.compression_method == "ae":
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
    choose("device", name, ("auto", "cpu", "cuda"))
    count = torch.cuda.device_count()
    asked = os.environ.get("GPU")
    if name == "cpu" or (name == "auto" and not count and not asked):
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if rank >= count:
        wish = f"GPU={asked}" if asked else f"device '{name}'"
        raise UserError(f"{wish} asks for more than the {count} GPUs that can be used; name others, or set device=cpu")
    return torch.device("cuda", rank)


def build_model(config: RunConfig, device: torch.device, dtype: torch.dtype) -> CausalWanModel:
    """The frozen transformer with its LoRA, if any."""
    model = load_generator(
        config.generator_ckpt, config.model_name, model_folder(config), config.use_ema, device, dtype
    )
    if config.lora_ckpt:
        add_lora(model, config.lora_ckpt, config.adapter.rank, config.adapter.alpha, config.adapter.merge)
    model.set_attention_backend(config.attention_backend)
    if config.compile:
        model.compile_repeated_blocks(dynamic=True)
    return model


def build_vae(config: RunConfig, params: WanParams, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
    """The frozen video autoencoder, which must speak the transformer's latents."""
    path = find_vae(model_folder(config))
    vae = load_vae(path, device, dtype)
    if vae.config.z_dim != params.in_dim:
        raise UserError(
            f"VAE {path} makes latents of {vae.config.z_dim} channels where generator_ckpt {config.generator_ckpt} "
            f"takes {params.in_dim}; they belong to different models"
        )
    return vae


def build_policy(config: RunConfig) -> ContextPolicy:
    """The context policy that the config names."""
    kwargs = config.model_kwargs
    if kwargs.use_latentmem:
        return POLICIES["latentmem"](config.layout(), kwargs.unused_to_local)
    return POLICIES["native"](config.layout(), kwargs.window_positions)


def build_descriptor(config: RunConfig, params: WanParams, device: torch.device) -> Descriptor | None:
    """The frame descriptor that the config names; None without retrieval."""
    kwargs = config.model_kwargs
    if not kwargs.use_latentmem:
        return None
    if kwargs.compression_method == "ae":
        return DESCRIPTORS["ae"](load_encoder(kwargs.ae_ckpt, device, latent_shape(config, params)))
    return DESCRIPTORS[kwargs.compression_method]()


def build_sampler(config: RunConfig) -> Sampler:
    """The few-step sampler that the config describes."""
    schedule = FlowSchedule(config.model_kwargs.timestep_shift)
    return Sampler(schedule, schedule.steps(config.denoising_step_list, config.warp_denoising_step))


def embed(config: RunConfig, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Each prompt's embedding [text_len, text_dim]; the text encoder is loaded for it and freed again."""
    device = find_device(config.device if config.text_device == "auto" else config.text_device)
    _, dtype = placement(config)
    folder = model_folder(config)
    encoder = TextEncoder(*find_text_encoder(folder), read_text_len(folder), device, dtype)
    return encode_prompts(encoder, prompts)


def latent_shape(config: RunConfig, params: WanParams) -> tuple[int, int, int]:
    """[C, H, W] of a latent frame; Wan's autoencoders shrink height and width by 8."""
    return params.in_dim, config.height // 8, config.width // 8


def check_memory(config: RunConfig, params: WanParams, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a run whose keys and values cannot fit, before it starts."""
    policy, (_, height, width) = build_policy(config), latent_shape(config, params)
    frame = KVCache.frame_bytes(params, height, width, config.batch_size, dtype)
    buffers = frame * (policy.layout.window + policy.local_frames + policy.layout.sink + policy.layout.memory)
    kept = frame * max(config.num_output_frames - policy.local_frames, 0) if policy.layout.memory else 0
    host_free = psutil.virtual_memory().available
    if device.type == "cuda":
        device_free, _ = torch.cuda.mem_get_info(device)
        if buffers > device_free:
            raise UserError(
                f"the context needs {buffers / 1e9:.1f} GB of GPU memory and {device_free / 1e9:.1f} GB are free; "
                "lower batch_size, model_kwargs.local_attn_size, or height and width"
            )
    else:
        kept += buffers
    if kept > host_free:
        raise UserError(
            f"num_output_frames {config.num_output_frames} needs {kept / 1e9:.1f} GB of host memory for keys and "
            f"values ({frame / 1e6:.1f} MB a latent frame) and {host_free / 1e9:.1f} GB are free; "
            "lower num_output_frames, batch_size, or height and width"
        )


def describe(config: RunConfig) -> str:
    """The context in one line, for a person."""
    kwargs, layout = config.model_kwargs, config.layout()
    local = layout.window - layout.sink - layout.memory
    if not layout.memory:
        return f"context: [sink {layout.sink} | local {local}] latent frames, the {layout.block} new ones included"
    between = layout.block + layout.memory + layout.recent_exclude
    return (
        f"context: [sink {layout.sink} | {layout.memory} retrieved by {kwargs.compression_method} "
        f"({kwargs.selection}) | local {local}] latent frames, the {layout.block} new ones included; "
        f"{between} frames before them are neither attended to nor retrievable yet"
    )
