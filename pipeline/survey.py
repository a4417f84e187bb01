"""A look at a run's weight files before any is loaded: do they fit each other, and the run the machine?"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from pipeline.codec import build_codec
from pipeline.config import RunConfig
from pipeline.context import ContextPolicy
from pipeline.kv_cache import KVCache, ring_frames
from pipeline.memory_plan import (
    GB,
    PRESETS,
    Free,
    MemoryPlan,
    Part,
    Phase,
    placed,
    transformer_work,
    vae_work,
)
from utils.errors import UserError
from wan.checkpoint import meta_model, read_generator, read_lora
from wan.params import WanParams
from wan.text_encoder import read_umt5
from wan.tiny_vae import read_tiny_vae
from wan.vae import read_vae

SMALLER = "lower batch_size, or height and width"


@dataclass(frozen=True)
class Survey:
    """What the files say.

    Attributes:
        params: the transformer's sizes.
        bank_device_gb: budget of the memory's device tier, as set or as the preset fills it.
    """

    params: WanParams
    plan: MemoryPlan
    bank_device_gb: float


def survey(
    config: RunConfig,
    files: Mapping[str, Path],
    policy: ContextPolicy,
    device: torch.device,
    text_device: torch.device,
    dtype: torch.dtype,
) -> Survey:
    """Read names and shapes of every weight file, and plan the run's memory from them.

    Args:
        files: role -> path, as `pipeline.build.weight_files` gives them.

    Raises:
        UserError: a file is unreadable, does not fit its model, or belongs to another one.
    """
    preset, gpu, item = PRESETS[config.memory], device.type == "cuda", dtype.itemsize
    params, generator = read_generator(
        config.generator_ckpt, config.model_name, Path(config.model_root) / config.model_name, config.use_ema
    )
    if config.lora_ckpt:
        read_lora(config.lora_ckpt, config.adapter.rank, meta_model(params))
    text_config, text = read_umt5(files["text encoder"])
    if config.vae == "tiny":
        tiny, vae = read_tiny_vae(files["tiny_vae_ckpt"])
        latent, channels, maps = tiny.latent_channels, tiny.widths[-1], 3
    else:
        vae_config, vae = read_vae(files["VAE"])
        latent, maps = vae_config.get("z_dim", 16), 12
        channels = vae_config.get("decoder_base_dim") or vae_config.get("base_dim", 96)
    _check_family(config, params, files, text_config.d_model, latent)

    height, width, batch = config.height // 8, config.width // 8, config.batch_size
    frame = KVCache.frame_bytes(params, height, width, batch, dtype)
    layout, ring = policy.layout, ring_frames(policy)
    context = frame * (ring + layout.sink + layout.memory + layout.window)
    context += 2 * params.num_layers * batch * params.text_len * params.dim * item  # text keys and values
    tokens = layout.block * params.tokens_per_frame(height, width) * batch
    work = transformer_work(tokens, params.dim, params.ffn_dim, frame, item)
    decoding = vae_work(batch, config.height, config.width, channels, item, maps)
    weights = _weight_bytes(generator, config.weights, item)
    resident = gpu and not preset.offload
    parts = [
        placed(resident, "transformer's weights", weights, "use memory: low, or weights: int8"),
        placed(gpu, "context's keys and values", context, f"lower model_kwargs.local_attn_size, {SMALLER[6:]}"),
        placed(gpu, "VAE's weights", count(vae) * item, SMALLER),
        placed(gpu, "transformer's working memory", work, SMALLER, estimated=True),
        placed(gpu, "VAE's working memory", decoding, SMALLER, estimated=True),
    ]
    on_device, filled = int(config.bank.device_gb * GB), preset.bank_on_device and not config.bank.device_gb
    free = Free(device_free(device) if gpu else None, host_free())
    text_phase = Phase("encoding the prompts", (_text_part(text, text_device, preset.offload, item),))
    if filled:
        on_device = MemoryPlan((text_phase, Phase("generating", tuple(parts))), free).spare()
    parts.append(_bank_part(config, params, policy, dtype, on_device if gpu else 0))
    budget = (parts[-1].device + 0.5) / GB if filled else config.bank.device_gb  # half a byte against rounding
    return Survey(params, MemoryPlan((text_phase, Phase("generating", tuple(parts))), free), budget)


def count(tensors: Mapping[str, torch.Tensor]) -> int:
    """Numbers in tensors, those of several names counted once."""
    return sum({id(tensor): tensor.numel() for tensor in tensors.values()}.values())


def device_free(device: torch.device) -> int:
    """Bytes of device memory that this process can have: what is free, and what PyTorch keeps for its next tensors."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def host_free() -> int:
    """Bytes of host memory that this process can have: what is free, and at most its share beside torchrun's others.

    Within a container, its limit counts.
    """
    memory, cgroup = psutil.virtual_memory(), Path("/sys/fs/cgroup")
    free, total = memory.available, memory.total
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())["anon"]
        free, total = min(free, max(limit - int(used), 0)), min(total, limit)
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return min(free, total // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _check_family(config: RunConfig, params: WanParams, files: Mapping[str, Path], text: int, latent: int) -> None:
    for role, size, makes, takes in (
        ("text encoder", text, "embeddings of {} numbers", params.text_dim),
        ("tiny_vae_ckpt" if config.vae == "tiny" else "VAE", latent, "latents of {} channels", params.in_dim),
    ):
        if size != takes:
            raise UserError(
                f"{role} {files[role]} makes {makes.format(size)} where generator_ckpt {config.generator_ckpt} takes "
                f"{takes}; they belong to different models: set the model_name that the checkpoint belongs to"
            )


def _weight_bytes(tensors: Mapping[str, torch.Tensor], form: str, item: int) -> int:
    """Bytes of the transformer; the shorter forms keep one byte for each weight of the blocks' linears."""
    linears = {key: x for key, x in tensors.items() if key.startswith("blocks.") and x.dim() == 2}
    return count(tensors) * item if form == "same" else (count(tensors) - count(linears)) * item + count(linears)


def _text_part(tensors: Mapping[str, torch.Tensor], device: torch.device, offload: bool, item: int) -> Part:
    size, gpu = count(tensors) * item, device.type == "cuda"
    name, remedy = "text encoder's weights", "use memory: low or text_device: cpu" if gpu else "use dtype: bfloat16"
    if gpu and offload:  # its largest weight, the embedding table, visits the device as a whole
        return Part(name, max(tensor.numel() for tensor in tensors.values()) * item, size, "use text_device: cpu")
    return placed(gpu, name, size, remedy)


def _bank_part(config: RunConfig, params: WanParams, policy: ContextPolicy, dtype: torch.dtype, budget: int) -> Part:
    """Keys and values of the frames that leave the window; the disk tier takes its share of the host's."""
    leaving = max(config.num_output_frames - ring_frames(policy) - policy.layout.sink, 0) if policy.layout.memory else 0
    kept = min(leaving, config.bank.capacity or leaving)
    tokens = params.tokens_per_frame(config.height // 8, config.width // 8)
    shape = (2, params.num_layers, tokens, params.num_heads, params.head_dim)
    record = config.batch_size * build_codec(config.bank.storage, dtype).record_bytes(shape)
    on_device = min(kept, budget // record)
    on_host = kept - on_device
    if config.bank.host_gb is not None:
        on_host = min(on_host, int(config.bank.host_gb * GB) // record)
    name = f"keys and values of {kept} frames outside the window ({record / 1e6:.1f} MB each)"
    remedy = (
        f"lower num_output_frames {config.num_output_frames}, set bank.storage: int8 or bank.capacity, "
        "or set bank.host_gb with bank.disk_gb"
    )
    return Part(name, on_device * record, on_host * record, remedy)
