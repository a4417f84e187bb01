"""What a run can be told: one frozen tree, from YAML files that users already have."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.bank import BankConfig
from pipeline.context import POLICIES, Layout
from pipeline.memory_plan import PRESETS
from utils.errors import UserError
from utils.processes import rank
from utils.settings import load_settings, require_choice, retired_keys

# Keys that published configs carry and that change nothing here.
RETIRED = (
    "global_sink",  # the sink always stays
    "latent_only",  # generate_latent.py writes latents, inference.py videos
    "adapter.type",
    "adapter.dropout",
    "adapter.dtype",
    "adapter.verbose",
)


@dataclass(frozen=True)
class ModelKwargs:
    """The context: what a block attends to (sizes in latent frames; see `pipeline.context`).

    Attributes:
        local_attn_size: the window, the block's own frames included (L).
        sink_size: first frames that always stay (S).
        use_latentmem: retrieve frames that left the window; short for policy `latentmem`, else `native`.
        policy: what a block attends to, a name in `pipeline.context.POLICIES`; null follows use_latentmem.
        memory_size: retrieved frames a block attends to, at most (K).
        recent_exclude: latest frames to leave the window that may not be retrieved yet (R).
        compression_method: a frame's descriptor, a name in `pipeline.retrieval.DESCRIPTORS`.
        selection: who is retrieved, a name in `pipeline.retrieval.SELECTIONS`.
        ae_ckpt: retrieval encoder, for compression_method `ae`.
        unused_to_local: memory slots that nothing was retrieved for hold further local frames.
        window_positions: without latentmem, rotate keys to their place in the window, as latentmem does.
        timestep_shift: shift of the noise schedule.
    """

    local_attn_size: int = 12
    sink_size: int = 1
    use_latentmem: bool = False
    memory_size: int = 6
    recent_exclude: int = 5
    compression_method: str = "avg_pool"
    selection: str = "similarity"
    ae_ckpt: str | None = None
    unused_to_local: bool = False
    window_positions: bool = False
    timestep_shift: float = 5.0
    policy: str | None = None

    @property
    def policy_name(self) -> str:
        return self.policy or ("latentmem" if self.use_latentmem else "native")

    def __post_init__(self) -> None:
        require_choice("model_kwargs.policy", self.policy_name, POLICIES)
        if not 0 < self.timestep_shift < math.inf:
            raise UserError(
                f"model_kwargs.timestep_shift is {self.timestep_shift}; use a number above 0, such as Wan's 5.0"
            )


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA's sizes, as it was trained, and whether to fold it into the weights."""

    rank: int = 256
    alpha: float = 256
    merge: bool = True


@dataclass(frozen=True)
class RunConfig:
    """A generation run.

    Attributes:
        model_name: folder inside `model_root` that holds text encoder, tokenizer and VAE.
        generator_ckpt, use_ema, lora_ckpt, adapter: the transformer's weights.
        vae: full, or tiny: a small decoder that is faster and less exact (`wan.tiny_vae`).
        tiny_vae_ckpt: its weights, for vae `tiny`.
        data_path: prompts, one a line.
        prompt: one prompt instead of `data_path`.
        inference_iter: how many of the prompts to use; -1 for all.
        num_samples: videos a prompt, each from noise of its own.
        batch_size: videos generated together.
        num_output_frames: length in latent frames; a video has 1 + 4 * (n - 1) frames.
        height, width: of the video, in pixels; multiples of 16.
        fps: frames a second of the mp4.
        denoising_step_list, warp_denoising_step: the sampler's steps; see `pipeline.sampler`.
        num_frame_per_block: latent frames generated together.
        context_noise: timestep at which a finished block's keys and values are computed.
        skip_existing: leave finished videos as they are.
        save_with_index: name files by prompt number, else by the prompt's text.
        device: auto, cpu or cuda.
        text_device: where prompts are encoded; auto follows `device`.
        text_cache: folder in which the prompts' embeddings and the weights' digests are kept for later runs; null
            keeps none.
        memory: low, balanced or fast, for GPUs of about 12, 24 and 80 GB; see `pipeline.memory_plan.PRESETS`.
        weights: how the transformer's are kept, a name in `pipeline.offload.FORMS`.
        dtype: auto (bfloat16 on a GPU, float32 on a CPU), float32 or bfloat16.
        attention_backend: one of diffusers' attention backends.
        compile: compile the transformer's blocks (torch.compile): slower to start, faster after.
    """

    generator_ckpt: str
    model_name: str = "Wan2.1-T2V-1.3B"
    model_root: str = "wan_models"
    model_kwargs: ModelKwargs = field(default_factory=ModelKwargs)
    bank: BankConfig = field(default_factory=BankConfig)
    use_ema: bool = False
    lora_ckpt: str | None = None
    adapter: AdapterConfig | None = None
    vae: str = "full"
    tiny_vae_ckpt: str | None = None
    data_path: str | None = None
    prompt: str | None = None
    output_folder: str = "videos"
    inference_iter: int = -1
    num_samples: int = 1
    batch_size: int = 1
    seed: int = 0
    num_output_frames: int = 120
    height: int = 480
    width: int = 832
    fps: int = 16
    denoising_step_list: list[int] = field(default_factory=lambda: [1000, 750, 500, 250])
    warp_denoising_step: bool = True
    num_frame_per_block: int = 3
    context_noise: float = 0.0
    skip_existing: bool = True
    save_with_index: bool = True
    device: str = "auto"
    text_device: str = "auto"
    text_cache: str | None = "~/.cache/longlive-rag"
    memory: str = "balanced"
    weights: str = "same"
    dtype: str = "auto"
    attention_backend: str = "native"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.num_frame_per_block < 1:
            raise UserError(f"num_frame_per_block is {self.num_frame_per_block}; it must be at least 1")
        if self.num_output_frames < 1 or self.num_output_frames % self.num_frame_per_block:
            below = max(self.num_output_frames // self.num_frame_per_block, 1) * self.num_frame_per_block
            raise UserError(
                f"num_output_frames {self.num_output_frames} is no multiple of num_frame_per_block "
                f"{self.num_frame_per_block}; try {below} or {below + self.num_frame_per_block}"
            )
        for name in ("height", "width"):
            if getattr(self, name) < 16 or getattr(self, name) % 16:
                raise UserError(
                    f"{name} {getattr(self, name)} is no multiple of 16; 480 x 832 is what Wan was trained on"
                )
        for name in ("num_samples", "batch_size", "fps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.inference_iter == 0 or self.inference_iter < -1:
            raise UserError(
                f"inference_iter is {self.inference_iter}; use the number of prompts, or -1 for all of them"
            )
        require_choice("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        require_choice("memory", self.memory, PRESETS)
        require_choice("vae", self.vae, ("full", "tiny"))
        if self.vae == "tiny" and not self.tiny_vae_ckpt:
            raise UserError("vae is 'tiny' but tiny_vae_ckpt names no file; or use 'full'")
        if self.lora_ckpt and self.adapter is None:
            raise UserError(
                "lora_ckpt is set but adapter is not; give adapter.rank and adapter.alpha as it was trained"
            )
        kwargs = self.model_kwargs
        if self.layout().memory and kwargs.compression_method == "ae" and not kwargs.ae_ckpt:
            raise UserError("compression_method is 'ae' but model_kwargs.ae_ckpt names no file; or use 'avg_pool'")

    def layout(self) -> Layout:
        """The context's sizes; refuses impossible ones."""
        sizes = self.model_kwargs
        memory = (sizes.memory_size, sizes.recent_exclude) if POLICIES[sizes.policy_name].retrieves else (0, 0)
        return Layout(sizes.local_attn_size, sizes.sink_size, *memory, block=self.num_frame_per_block)


@dataclass(frozen=True)
class CorpusConfig(RunConfig):
    """A corpus of latents for training the retrieval encoder.

    Attributes:
        sample_ratio: share of the prompts to use, drawn by `seed`.
        max_video_saves: how many of the latents are decoded too, for a look.
    """

    output_folder: str = "datasets"
    sample_ratio: float = 1.0
    max_video_saves: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sample_ratio <= 1:
            raise UserError(f"sample_ratio is {self.sample_ratio}; it must be above 0 and at most 1")
        if self.max_video_saves < 0:
            raise UserError(f"max_video_saves is {self.max_video_saves}; it cannot be negative")


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    schema: type[RunConfig] = RunConfig,
) -> RunConfig:
    """A run's settings from a YAML file and overrides such as `seed=7` or `model_kwargs.memory_size=4`."""
    return load_settings(schema, path, overrides, RETIRED)


def parse_command_line(usage: str, schema: type[RunConfig] = RunConfig) -> RunConfig:
    """`CONFIG.yaml [key=value ...]` as typed, to settings; notes what the file sets in vain.

    Args:
        usage: printed for `--help`, and when no config is named.
    """
    path, *overrides = sys.argv[1:] or ["--help"]
    if path in ("-h", "--help"):
        print(usage)
        sys.exit(0 if sys.argv[1:] else 2)
    config = load_config(path, overrides, schema)
    if not config.prompt and not config.data_path:
        raise UserError(f'config {path} names no data_path; set it, or give one prompt with prompt="..."')
    if rank() == 0 and (unused := retired_keys(path, RETIRED)):
        print(f"note: {path} sets {', '.join(unused)}, which changes nothing here", flush=True)
    return config
