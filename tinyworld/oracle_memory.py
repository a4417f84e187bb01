"""Does the backbone use what it is given: `python -m tinyworld.oracle_memory [key=value ...]`.

The engine's generation, with the truth in every place of the past: each block's own sample is put aside, the
true latents are committed in its stead, and retrieval chooses by the camera's truth, or by a rule and the config's
descriptor. What differs between the conditions is the memory alone; noise, positions and local frames are the same.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from evaluation.compare.statistics import Difference, Estimate, compare, estimate
from pipeline.bank.bank import Bank
from pipeline.bank.codec import build_codec
from pipeline.bank.tiers import RamTier
from pipeline.build import load
from pipeline.config import RunConfig, load_config
from pipeline.kv_cache import KVCache, ring_frames
from pipeline.noise import SeededNoise
from pipeline.pipeline import Pipeline
from pipeline.preflight import preflight
from pipeline.retrieval import Index, Retrieval
from pipeline.selection import SELECTIONS
from tinyworld.judging.latent_errors import latent_errors
from tinyworld.places import NextSample, TruePlaces
from tinyworld.training.vae import to_video
from tinyworld.world.film import held_out
from tinyworld.world.scene import ONE_LATENT, pixel_frames
from utils.errors import UserError, run
from utils.settings import Settings, load_settings, setting
from utils.table import markdown
from wan.vae import encode

DRAFT = "like a draft"  # of the block: `query=draft`; in all other conditions the last finished frame asks
# condition -> (which candidates are retrieved, whether the records are those of the next sample of the batch);
# by the camera's truth, or by a rule of `SELECTIONS` and the config's own descriptor
CONDITIONS = {
    "none": ("none", False),
    "most similar": ("similarity", False),
    "around the most similar": ("around", False),
    DRAFT: ("similarity", False),
    "true place": ("near", False),
    "wrong place": ("far", False),
    "other scene": ("near", True),
}
PARTS = ("whole view", "new columns")
Errors = dict[str, dict[str, dict[int, float]]]  # condition -> part -> clip -> mean square error
Means = dict[str, dict[str, Estimate]]
Differences = dict[str, dict[str, Difference]]


@dataclass(frozen=True, kw_only=True)
class OracleSettings(Settings):
    """The experiment.

    The camera turns at about 27 and 57. From 42 to 51 it uncovers places last seen 19 frames before or
    earlier, out of the window of 18.
    """

    config: str = setting("configs/tinyworld_latentmem.yaml", "config of a run with memory")
    model_root: str = setting("wan_models", "folder of the model's parts", place=True, reads=True)
    generator_ckpt: str = setting("checkpoints/tinyworld.safetensors", "the transformer's weights", place=True)
    steps: list[int] | None = setting(
        None, "2 or more denoising steps instead of the config's", at_least=1, at_most=1000
    )
    clips: int = setting(64, "held-out clips", at_least=2)
    first: int = setting(42, "first latent frame that is sampled", at_least=1)
    frames: int = setting(51, "latent frames of a clip", at_least=1)
    batch: int = setting(16, "clips sampled together", at_least=2)
    seed: int = setting(0, "seed of the noise", at_least=0, at_most=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clips % self.batch == 1:
            raise UserError(f"batch {self.batch} leaves a clip of {self.clips} alone; 'other scene' takes two")
        if self.steps is not None and len(self.steps) < 2:
            raise UserError(f"steps {self.steps} is one step, and a draft is made by the first of several; name two")
        policy = self.run_config().policy()
        if not policy.retrieves:
            raise UserError(
                f"config {self.config} retrieves nothing; use one with memory, such as configs/tinyworld_latentmem.yaml"
            )
        if not policy.block <= self.first <= self.frames - policy.block:
            raise UserError(
                f"first {self.first} of {self.frames} frames leaves nothing to sample or nothing before it; "
                f"it must be {policy.block} to frames - {policy.block}"
            )

    def run_config(self) -> RunConfig:
        """The settings that the blocks are sampled with."""
        overrides = {
            "model_root": self.model_root,
            "generator_ckpt": self.generator_ckpt,
            "seed": self.seed,
            "num_output_frames": self.frames,
        }
        if self.steps:
            overrides["denoising_step_list"] = self.steps
        return load_config(self.config, overrides)


def main() -> None:
    settings = load_settings(OracleSettings, None, sys.argv[1:])
    preflight(settings.run_config())
    errors = measure_errors(settings, lambda line: print(line, flush=True))
    print(table(*summary(errors)))


def measure_errors(settings: OracleSettings, say: Callable[[str], None]) -> Errors:
    """Mean square error of the sampled latents for each condition, part of the picture and clip.

    Normalised latents have unit deviation, so 2 is the error of an unrelated draw.
    """
    captions = [held_out(index).caption for index in range(settings.clips)]
    pipe = load(settings.run_config(), captions)
    errors: Errors = {condition: {part: {} for part in PARTS} for condition in CONDITIONS}
    for first in range(0, settings.clips, settings.batch):
        clips = range(first, min(first + settings.batch, settings.clips))
        truth, camera = true_latents(pipe, clips, settings.frames)
        for condition in CONDITIONS:
            memory = remember(pipe, camera, settings.frames, condition)
            said = captions[clips.start : clips.stop]
            made = sample(asking(pipe, condition), said, clips, truth, memory, settings.first)
            for part, found in zip(PARTS, latent_errors(made, truth, camera), strict=True):
                for clip, error in zip(clips, found, strict=True):
                    if np.isfinite(error):
                        errors[condition][part][clip] = float(error)
        say(f"oracle memory: {clips.stop} of {settings.clips} clips")
    return errors


def true_latents(pipe: Pipeline, clips: range, frames: int) -> tuple[torch.Tensor, np.ndarray]:
    """Normalised latents [B, F, C, h, w] of held-out clips and the camera [B, F] at each one's last frame."""
    videos, camera = [], []
    for index in clips:
        clip = held_out(index, pixel_frames(frames))
        videos.append(clip.video)
        camera.append(clip.camera[::ONE_LATENT])
    return encode(pipe.vae, to_video(np.stack(videos))), np.stack(camera)


def asking(pipe: Pipeline, condition: str) -> Pipeline:
    """The pipeline, asking with what the condition asks with."""
    query = "draft" if condition == DRAFT else "last"
    return replace(pipe, policy=replace(pipe.policy, query=query))


def remember(pipe: Pipeline, camera: np.ndarray, frames: int, condition: str) -> tuple[Index, Bank]:
    """What chooses the frames of a condition's memory, and what keeps them."""
    rule, of_the_next_sample = CONDITIONS[condition]
    tiers = [RamTier("host", frames)]
    codec = build_codec("same", pipe.model.dtype)
    bank = NextSample(tiers, codec, len(camera)) if of_the_next_sample else Bank(tiers, codec)
    if rule in SELECTIONS:
        return Retrieval(pipe.descriptor, SELECTIONS[rule]), bank
    at_hand = ring_frames(pipe.policy) if of_the_next_sample else 0
    return TruePlaces(camera, rule, pipe.policy.block, at_hand), bank


def sample(
    pipe: Pipeline,
    captions: Sequence[str],
    clips: Sequence[int],
    truth: torch.Tensor,
    memory: tuple[Index, Bank],
    first: int,
) -> dict[int, torch.Tensor]:
    """Each sampled block [B, 3, C, h, w] by its first frame, in the true past, with this memory."""
    index, bank = memory
    cache = KVCache(pipe.frame_shape(len(truth)), pipe.policy, bank, pipe.device, pipe.model.dtype)
    noise = SeededNoise(pipe.config.seed, [(clip, 0) for clip in clips])
    generation = pipe.start_from(pipe.prompt_embeds(captions), noise, index, cache)
    made = {}
    for true_block in truth.to(pipe.device).split(pipe.policy.block, dim=1):
        start = generation.start
        plan = generation.begin()
        if start >= first:
            made[start] = generation.denoise(plan)
        generation.commit(true_block, plan)
    return made


def summary(errors: Errors) -> tuple[Means, Differences]:
    """(mean error of each condition, paired differences: the true place to each of the others, rule to rule)."""
    means: Means = {}
    for name, parts in errors.items():
        means[name] = {part: estimate(parts[part].values()) for part in PARTS}
    pairs = []
    for name in CONDITIONS:
        if name != "true place":
            pairs.append((name, "true place"))
    for rule in ("around the most similar", DRAFT):
        pairs.append(("most similar", rule))
    pairs.append(("none", DRAFT))
    differences: Differences = {}
    for a, b in pairs:
        differences[f"{b} - {a}"] = {part: compare(errors[a][part], errors[b][part]) for part in PARTS}
    return means, differences


def table(means: Means, differences: Differences) -> str:
    """Markdown: errors by condition, then paired differences; 95% intervals over clips."""
    rows = [["memory", *PARTS]]
    for name, row in means.items():
        rows.append([name, f"{row['whole view']:.3f}", f"{row['new columns']:.3f}"])
    for name, row in differences.items():
        rows.append([name, f"{row['whole view']:+.3f}", f"{row['new columns']:+.3f}"])
    return markdown(rows)


def as_json(means: Means, differences: Differences) -> dict:
    """Both as plain data."""
    return {"error": _plain(means), "difference": _plain(differences)}


def _plain(rows: Mapping[str, Mapping[str, Estimate | Difference]]) -> dict:
    plain = {}
    for name, row in rows.items():
        plain[name] = {part: asdict(found) for part, found in row.items()}
    return plain


if __name__ == "__main__":
    run(main)
