"""Run settings: one frozen tree, read from the YAML files that users already have."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.autoencoders import AUTOENCODERS
from pipeline.bank.settings import BankSettings
from pipeline.context import ContextPolicy
from pipeline.descriptors import DESCRIPTORS, Descriptor
from pipeline.footprint import PRESETS, Preset
from pipeline.merging import MergingPolicy
from pipeline.offload import QUANTIZATION
from pipeline.policies import POLICIES
from pipeline.sampler import SAMPLERS
from pipeline.scenes import SWITCHES
from pipeline.selection import SELECTIONS
from pipeline.timeline import Grid
from utils.errors import UserError
from utils.moving import FITS
from utils.paths import read_path
from utils.settings import Settings, combined, load_settings, setting

# Keys that published configs carry and that change nothing here.
RETIRED = (
    "global_sink",  # the sink always stays
    "latent_only",  # generate_latent.py writes latents, inference.py videos
    "adapter.type",
    "adapter.dropout",
    "adapter.dtype",
    "adapter.verbose",
)


@dataclass(frozen=True, kw_only=True)
class ContextSettings(Settings):
    """Context: what a block attends to, and the noise schedule"""

    policy: str | None = setting(None, "what a block attends to; null follows use_latentmem", choices=POLICIES)
    use_latentmem: bool = setting(False, "retrieve frames that left the window: policy latentmem, else native")
    compression_method: str = setting("avg_pool", "what frames are retrieved by", choices=DESCRIPTORS)
    selection: str = setting("similarity", "rule that picks the retrieved frames", choices=SELECTIONS)
    timestep_shift: float = setting(5.0, "shift of the noise schedule", above=0, at_most=1000)


# The published configs keep all of these in one group.
ModelKwargs = combined("ModelKwargs", ContextSettings, *POLICIES.values(), *DESCRIPTORS.values())


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(Settings):
    """Adapter: a LoRA's sizes, as it was trained"""

    rank: int = setting(256, "rank of the LoRA", at_least=1, at_most=65536)
    alpha: float = setting(256, "its scale is alpha / rank", above=0, at_most=1e6)
    merge: bool = setting(True, "fold it into the weights; false keeps it beside them")


@dataclass(frozen=True, kw_only=True)
class WeightSettings(Settings):
    """Weights"""

    model_name: str = setting("Wan2.1-T2V-1.3B", "folder inside model_root with text encoder, tokenizer and VAE")
    model_root: str = setting("wan_models", "folder of model folders", place=True, reads=True)
    generator_ckpt: str = setting("", "the transformer's weights", place=True, reads=True)
    use_ema: bool = setting(False, "take the averaged weights of a checkpoint that has both")
    lora_ckpt: Any = setting(None, "a LoRA, or a list of {path, weight}", place=True)
    adapter: AdapterSettings | None = setting(None, "sizes of a LoRA whose file does not say them")
    vae: str = setting("full", "tiny is a small decoder, faster and less exact", choices=AUTOENCODERS)
    tiny_vae_ckpt: str | None = setting(None, "weights of vae tiny", place=True, reads=True)


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """Prompts"""

    data_path: str | None = setting(None, "file of prompts, one a line", place=True, reads=True)
    prompt: str | None = setting(None, "one prompt instead of data_path", place=True)
    inference_iter: int = setting(-1, "how many of the prompts to use; -1 for all", at_least=-1, place=True)
    num_samples: int = setting(1, "videos a prompt, each from noise of its own", at_least=1, at_most=10**6, place=True)


@dataclass(frozen=True, kw_only=True)
class ControlSettings(Settings):
    """Control: what a video starts from and where its prompt changes"""

    start: str | None = setting(
        None, "picture, clip or file of latents that the video begins with", place=True, reads=True
    )
    start_frames: int = setting(
        -1, "latent frames to take of start, in whole blocks; -1 for all", at_least=-1, at_most=10**9
    )
    fit: str = setting("cover", "how pictures of another shape are brought to the video's", choices=FITS)
    switch: str = setting("text", "what happens where the prompt changes", choices=SWITCHES)
    segments: list[Any] = setting([], "prompts one after another, each {prompt, seconds | frames | blocks, how}")
    switch_frame_indices: str = setting(
        "", "latent frames where the prompts of a JSONL line's list begin, such as 40,80; the first begins at 0"
    )
    parent: str | None = setting(
        None, "from=: a finished video to fork, such as videos/x/00000-0; its blocks are taken as they are", place=True
    )
    at: str | None = setting(None, "from: time from which it is made anew, such as 12s, 48f or 16b", place=True)
    redo: str | None = setting(None, "from: span that is made anew, such as 12s-15s", place=True)
    keep_after: bool = setting(False, "redo: what follows the span stays as it was", place=True)


@dataclass(frozen=True, kw_only=True)
class VideoSettings(Settings):
    """Video"""

    num_output_frames: int = setting(120, "length in latent frames", at_least=1, at_most=10**9)
    height: int = setting(480, "in pixels", at_least=1, at_most=16384)
    width: int = setting(832, "in pixels", at_least=1, at_most=16384)
    fps: int = setting(16, "frames a second of the mp4", at_least=1, at_most=1000)
    seed: int = setting(0, "of all noise", at_least=-(10**30), at_most=10**30)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """Sampling"""

    denoising_step_list: list[int] = setting(
        [1000, 750, 500, 250], "noise levels of the steps, falling", at_least=1, at_most=1000
    )
    warp_denoising_step: bool = setting(True, "read the list as unshifted times and shift them")
    sampler: str = setting("few_step", "how the steps are taken", choices=SAMPLERS)
    num_frame_per_block: int = setting(3, "latent frames generated together", at_least=1, at_most=1000)
    independent_first_frame: bool = setting(
        False, "the first block is one latent frame, as image-to-video checkpoints are trained; a picture fills it"
    )
    context_noise: float = setting(
        0.0, "timestep at which a finished block's keys and values are computed", at_least=0, at_most=1000
    )


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """Output"""

    output_folder: str = setting("videos", "where the files go", place=True, writes=True)
    skip_existing: bool = setting(True, "leave finished files as they are", place=True)
    keep_latents: bool = setting(
        False, "keep a finished video's latents beside it, NAME.latents.npy: forks of it start sooner", place=True
    )
    segment_blocks: int = setting(
        40,
        "blocks that are decoded and encoded to the end at a time; a killed run goes on after them",
        at_least=1,
        at_most=10**6,
        place=True,
    )
    keep_state: str = setting(
        "",
        "times, such as 12s,24s, at which keys and values are kept beside the video: its forks there start at once",
        place=True,
    )
    save_with_index: bool = setting(True, "name files by prompt number, else by the prompt's text", place=True)


@dataclass(frozen=True, kw_only=True)
class PlacementSettings(Settings):
    """Machine"""

    batch_size: int = setting(1, "videos generated together", at_least=1, at_most=4096, place=True)
    device: str = setting("auto", "where the models run", choices=("auto", "cpu", "cuda"), place=True)
    text_device: str = setting(
        "auto", "where prompts are encoded; auto follows device", choices=("auto", "cpu", "cuda"), place=True
    )
    text_cache: str | None = setting(
        "~/.cache/longlive-rag", "folder of prompts' embeddings and weights' digests; null keeps none", place=True
    )
    memory: str = setting(
        "balanced", "where weights and frames lie, for GPUs of about 12, 24 and 80 GB", choices=PRESETS, place=True
    )
    weights: str = setting("same", "how the transformer's weights are kept", choices=QUANTIZATION)
    dtype: str = setting(
        "auto", "of the models; auto is bfloat16 on a GPU, float32 on a CPU", choices=("auto", "float32", "bfloat16")
    )
    attention_backend: str = setting("native", "one of diffusers' attention backends")
    compile: bool = setting(False, "compile the transformer's blocks: slower to start, faster after")
    cuda_graphs: bool = setting(
        True, "on a GPU, queue the denoising forwards of a full window as one graph", place=True
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(
    PlacementSettings,
    OutputSettings,
    SamplingSettings,
    VideoSettings,
    ControlSettings,
    PromptSettings,
    WeightSettings,
):
    """Groups of settings that have a group of their own in the file"""

    model_kwargs: ModelKwargs = setting(ModelKwargs, "the context")
    bank: BankSettings = setting(BankSettings, "the frames outside the window")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generator_ckpt:
            raise UserError("generator_ckpt names no file; it is the transformer's weights, see configs/ for examples")
        self._require_whole_blocks()
        if self.inference_iter == 0:
            raise UserError("inference_iter is 0; use the number of prompts, or -1 for all of them")
        if self.vae == "tiny" and not self.tiny_vae_ckpt:
            raise UserError("vae is 'tiny' but tiny_vae_ckpt names no file; or use 'full'")
        if self.parent is None and (self.at or self.redo or self.keep_after):
            raise UserError("at, redo and keep_after belong to a fork; name its parent with from=videos/x/00000-0")
        if self.parent is not None and self.start is not None:
            raise UserError("start and from= both give the video's first blocks; give one of them")
        if self.keep_state and self.batch_size > 1:
            raise UserError(f"keep_state is for videos made one at a time, and batch_size is {self.batch_size}; set 1")
        self.loras()
        self.descriptor_files()
        self.policy()

    @property
    def first_block(self) -> int:
        """Latent frames of the first block."""
        return 1 if self.independent_first_frame else self.num_frame_per_block

    @property
    def blocks(self) -> int:
        """Blocks of a video."""
        return 1 + (self.num_output_frames - self.first_block) // self.num_frame_per_block

    def grid(self, temporal: int) -> Grid:
        """Where the blocks of its videos begin.

        Args:
            temporal: pixel frames of a latent frame.
        """
        return Grid(self.num_output_frames, self.num_frame_per_block, self.first_block, self.fps / temporal)

    def _require_whole_blocks(self) -> None:
        block = self.num_frame_per_block
        if self.num_output_frames >= self.first_block and (self.num_output_frames - self.first_block) % block == 0:
            return
        below = self.first_block + (self.blocks - 1) * block if self.blocks > 0 else self.first_block
        rest = "is no multiple of" if self.first_block == block else "less the first one is no multiple of"
        raise UserError(
            f"num_output_frames {self.num_output_frames} {rest} num_frame_per_block {block}; try {below} or "
            f"{below + block}"
        )

    def policy(self) -> ContextPolicy:
        """What a block attends to; refuses impossible sizes."""
        name = self.model_kwargs.policy or ("latentmem" if self.model_kwargs.use_latentmem else "native")
        merge = self.model_kwargs.merge
        if merge != "none" and not issubclass(POLICIES[name], MergingPolicy):
            fit = [other for other, policy in POLICIES.items() if issubclass(policy, MergingPolicy)]
            raise UserError(f"merge {merge} is not for policy {name}; use policy {' or '.join(fit)}, or merge=none")
        first = 1 if self.independent_first_frame else None
        policy = _picked(POLICIES[name], self.model_kwargs, block=self.num_frame_per_block, first=first)
        if self.independent_first_frame and (policy.merged_frames or policy.encoded_frames):
            raise UserError(
                "independent_first_frame begins with a block of one frame, and this method merges or encodes whole "
                "blocks; use native or latentmem, or set independent_first_frame=false"
            )
        return policy

    def descriptor(self) -> Descriptor | None:
        """What frames are retrieved by; None without retrieval."""
        policy = self.policy()
        if not policy.retrieves or not policy.memory_size:
            return None
        method = self.model_kwargs.compression_method
        if policy.query == "draft" and method == "useful":
            raise UserError("compression_method useful has a query of its own; set query=last, or use 'ae'")
        if policy.query == "draft" and len(self.denoising_step_list) == 1:
            raise UserError(
                "query draft asks after the first denoising step, and denoising_step_list has no other to see what was "
                "found; add one, or set query=last"
            )
        return _picked(DESCRIPTORS[method], self.model_kwargs)

    def loras(self) -> list[tuple[Path, float]]:
        """(file, strength) of each LoRA."""
        given = self.lora_ckpt if isinstance(self.lora_ckpt, list) else [self.lora_ckpt]
        found = []
        for entry in given:
            if isinstance(entry, str) and entry:
                entry = {"path": entry}
            if not entry:
                continue
            if not isinstance(entry, dict) or not {"path"} <= entry.keys() <= {"path", "weight"}:
                raise UserError(f"lora_ckpt {self.lora_ckpt} is neither a file nor a list of {{path, weight}}")
            weight = entry.get("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UserError(f"lora_ckpt {entry['path']} has weight {weight}; it must be a finite number")
            found.append((read_path(str(entry["path"])), float(weight)))
        return found

    @property
    def preset(self) -> Preset:
        """Where weights and frames lie."""
        return PRESETS[self.memory]

    def descriptor_files(self) -> dict[str, Path]:
        """Setting -> weight file of the descriptor."""
        descriptor = self.descriptor()
        return descriptor.files() if descriptor else {}


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(RunConfig):
    """Corpus"""

    output_folder: str = setting("datasets", "where the latents go", place=True, writes=True)
    sample_ratio: float = setting(1.0, "share of the prompts to use, drawn by the seed", above=0, at_most=1)
    max_video_saves: int = setting(
        0, "how many of the latents are decoded too, for a look", at_least=0, at_most=10**6, place=True
    )
    vae: str = setting("full", "decoder of those videos", choices=AUTOENCODERS, place=True)


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    schema: type[RunConfig] = RunConfig,
) -> RunConfig:
    """A run's settings from a YAML file and overrides such as `seed=7` or `model_kwargs.memory_size=4`."""
    return load_settings(schema, path, overrides, RETIRED)


def _picked(part: type, values: Any, **more: Any) -> Any:
    """An object of settings class `part`, its fields taken from `values`."""
    names = [field.name for field in fields(part) if field.name not in more]
    return part(**{name: getattr(values, name) for name in names}, **more)
