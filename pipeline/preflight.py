"""Checks before any work: do the files fit each other, and does the run fit the machine?

What it finds is what is printed, enforced and loaded.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from pipeline.autoencoders import AUTOENCODERS, Autoencoder, Read
from pipeline.config import RunConfig
from pipeline.context import ContextPolicy
from pipeline.footprint import Free, MemoryPlan
from pipeline.group import describe_group, require_group
from pipeline.heads import require_head_groups
from pipeline.needs import Needs
from pipeline.offload import require_quantization
from pipeline.sampler import FlowSchedule
from utils.errors import DOWNLOAD, UserError
from utils.files import require_file
from utils.processes import per_video
from utils.settings import require_choice
from wan.attention import find_backend
from wan.checkpoint import meta_model, read_generator
from wan.lora import read_loras
from wan.params import LatentFormat, WanParams
from wan.text_encoder import find_text_encoder, load_tokenizer, read_umt5


@dataclass(frozen=True)
class Preflight:
    """A run that can be made.

    Attributes:
        device, text_device: where the models run, and where prompts are encoded.
        dtype: of the models.
        files: role -> file or folder of everything that weights are read from.
        params: the transformer's sizes.
        format: of the latents.
        policy: what a block attends to.
        footprint: what the run takes of the machine's memory.
        bank_bytes: budget on the device for frames outside the window, as set or as the preset fills it.
    """

    config: RunConfig
    device: torch.device
    text_device: torch.device
    dtype: torch.dtype
    files: Mapping[str, Path]
    params: WanParams
    format: LatentFormat
    policy: ContextPolicy
    footprint: MemoryPlan
    bank_bytes: int

    def describe(self) -> str:
        """The context in one line and the plan of memory, for a person."""
        config, kwargs = self.config, self.config.model_kwargs
        retrieval = ""
        if config.descriptor() is not None:
            retrieval = f", retrieved by {kwargs.compression_method} ({kwargs.selection}), query {self.policy.query}"
        tokens = block_tokens(config, self.params, self.format)
        shared = describe_group(self.params, tokens, config.batch_size, self.dtype.itemsize)
        place = describe_device(self.device, self.dtype, self.params)
        return (
            f"{place}\n{shared}context: {self.policy.describe()}{retrieval}; in latent frames, "
            f"the {self.policy.block} new ones included\n"
            f"memory ({config.memory}): {self.footprint.summary()}"
        )


def preflight(config: RunConfig) -> Preflight:
    """Refuse all that can be known to be wrong, the content of the weight files included.

    Raises:
        UserError: names the value, the file and the remedy.
    """
    schedule = FlowSchedule(config.model_kwargs.timestep_shift)
    schedule.steps(config.denoising_step_list, config.warp_denoising_step)
    device, dtype = placement(config)
    text_device = find_device(config.device if config.text_device == "auto" else config.text_device)
    find_backend(config.attention_backend)
    require_quantization(config.weights, device)
    files = weight_files(config)
    params, generator = read_generator(files["generator_ckpt"], config.model_name, model_folder(config), config.use_ema)
    if loras := config.loras():
        adapter = config.adapter
        read_loras(meta_model(params), loras, adapter and adapter.rank, adapter and adapter.alpha)
    load_tokenizer(files["tokenizer"])
    text_config, text = read_umt5(files["text encoder"])
    decoder = AUTOENCODERS[config.vae]
    vae = decoder.read(files[decoder.role])
    _require_one_family(config, params, files, text_config.d_model, vae, decoder)
    _require_size(config, params, vae.format)
    require_group(config.policy(), params, block_tokens(config, params, vae.format), config.generator_ckpt)
    _require_whole_heads(config, params)
    if descriptor := config.descriptor():
        descriptor.load(vae.format.shape(config.height, config.width), "cpu")
    free = Free(device_free(device) if device.type == "cuda" else None, host_free())
    needs = Needs(config, device.type == "cuda", text_device.type == "cuda", dtype, params, generator, text, vae)
    footprint, bank_bytes = needs.plan(free)
    if problem := footprint.problem():
        raise UserError(problem)
    return Preflight(
        config, device, text_device, dtype, files, params, vae.format, config.policy(), footprint, bank_bytes
    )


def block_tokens(config: RunConfig, params: WanParams, format: LatentFormat) -> int:
    """Tokens of a block of one video."""
    _, height, width = format.shape(config.height, config.width)
    return config.num_frame_per_block * params.tokens_per_frame(height, width)


def model_folder(config: RunConfig) -> Path:
    return Path(config.model_root) / config.model_name


def weight_files(config: RunConfig) -> dict[str, Path]:
    """Role -> file or folder of everything a run reads its weights from."""
    folder = model_folder(config)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist; {DOWNLOAD}")
    encoder, tokenizer = find_text_encoder(folder)
    decoder = AUTOENCODERS[config.vae]
    files = {
        "generator_ckpt": Path(config.generator_ckpt),
        "text encoder": encoder,
        "tokenizer": tokenizer,
        decoder.role: decoder.find(config, folder),
    }
    for number, (path, weight) in enumerate(config.loras()):
        role = "lora_ckpt" if (number, weight) == (0, 1.0) else f"lora_ckpt {number} at {weight:g}"
        files[role] = path
    files |= config.descriptor_files()
    if config.model_kwargs.head_groups:
        files["head_groups"] = Path(config.model_kwargs.head_groups)
    for role, path in files.items():
        if not path.is_dir():
            require_file(path, f"{role} file", decoder.remedy() if role == decoder.role else DOWNLOAD)
    return files


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


def describe_device(device: torch.device, dtype: torch.dtype, params: WanParams) -> str:
    """Where a run computes and in what, in one line; a second one where it will take very long."""
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"device: {torch.cuda.get_device_name(device)} ({device}), {kind}"
    line = f"device: CPU, {kind}"
    if params.dim >= WanParams.dim:
        line += "\nnote: no GPU is used; a model of this size takes minutes a block on a CPU"
    return line


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


def _require_one_family(
    config: RunConfig,
    params: WanParams,
    files: Mapping[str, Path],
    text_dim: int,
    vae: Read,
    decoder: Autoencoder,
) -> None:
    for role, what, makes, takes in (
        ("text encoder", "embeddings of {} numbers", text_dim, params.text_dim),
        (decoder.role, "latents of {} channels", vae.format.channels, params.in_dim),
    ):
        if makes != takes:
            raise UserError(
                f"{role} {files[role]} makes {what.format(makes)} where generator_ckpt {config.generator_ckpt} takes "
                f"{takes}; they belong to different models: set the model_name that the checkpoint belongs to"
            )


def _require_whole_heads(config: RunConfig, params: WanParams) -> None:
    """Refuse what the attention of this run cannot do."""
    kwargs = config.model_kwargs
    if kwargs.head_groups:
        require_head_groups(kwargs.head_groups, params.num_layers, params.num_heads, config.generator_ckpt)
    biased = "head_groups" if kwargs.head_groups else f"bias {kwargs.bias}" if kwargs.bias != "none" else ""
    if biased and config.attention_backend != "native":
        raise UserError(
            f"{biased} adds to attention's logits, which attention_backend {config.attention_backend} does not take; "
            "set attention_backend=native"
        )
    if kwargs.head_groups and per_video() > 1:
        raise UserError(
            f"head_groups tells the heads of a layer apart, which GPUS_PER_VIDEO={per_video()} shares out; unset it"
        )


def _require_size(config: RunConfig, params: WanParams, format: LatentFormat) -> None:
    _, ph, pw = params.patch_size
    for name, patch in (("height", ph), ("width", pw)):
        size, multiple = getattr(config, name), patch * format.spatial
        if size < multiple or size % multiple:
            raise UserError(
                f"{name} {size} is no multiple of {multiple}, which this model takes; 480 x 832 is what Wan2.1 was "
                "trained on"
            )
