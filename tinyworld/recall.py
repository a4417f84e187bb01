"""Does the backbone use what it is given: `python -m tinyworld.recall [key=value ...]`.

The engine's rollout, with the truth in every place of the past: each block's own sample is put aside, the
true latents are committed in its stead, and retrieval chooses by the camera's truth, or by a rule and the config's
descriptor. What differs between the conditions is the memory alone; noise, positions and local frames are the same.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from evaluation.statistics import Difference, Estimate, compare, estimate
from pipeline import build
from pipeline.codec import Codec, build_codec
from pipeline.config import RunConfig, load_config
from pipeline.kv_cache import KVCache
from pipeline.memory import RamTier, Tier, TieredMemory
from pipeline.noise import SeededNoise
from pipeline.pipeline import Pipeline, load
from pipeline.retrieval import SELECTIONS, Retrieval, Selection
from pipeline.rollout import rollout
from pipeline.sampler import Sampler
from tinyworld.context import BLOCK
from tinyworld.corpus import held_out
from tinyworld.render import LANE
from tinyworld.vae import to_video
from tinyworld.world import ONE_LATENT, VIEW, pixel_frames
from utils.errors import UserError, run
from utils.settings import load_settings
from wan.vae import encode

CELL = 8  # pixels of a latent's column, or row
# condition -> (which candidates are retrieved, whether the records are those of the next sample of the batch);
# by the camera's truth, or by a rule of `SELECTIONS` and the config's own descriptor
CONDITIONS = {
    "none": ("none", False),
    "most similar": ("similarity", False),
    "around the most similar": ("around", False),
    "true place": ("near", False),
    "wrong place": ("far", False),
    "other scene": ("near", True),
}
PARTS = ("whole view", "new columns")
Errors = dict[str, dict[str, dict[int, float]]]  # condition -> part -> clip -> mean square error


@dataclass(frozen=True)
class RecallSettings:
    """The experiment: `clips` held-out clips of `frames` latent frames; blocks from `first` on are sampled.

    The camera turns at about 27 and 57. From 42 to 51 it uncovers places last seen 19 frames before or
    earlier, out of the window of 18.
    """

    config: str = "configs/tinyworld_latentmem.yaml"
    model_root: str = "wan_models"
    generator_ckpt: str = "checkpoints/tinyworld.safetensors"
    steps: list[int] | None = None
    clips: int = 64
    first: int = 42
    frames: int = 51
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not BLOCK <= self.first <= self.frames - BLOCK:
            raise UserError(
                f"first {self.first} of {self.frames} frames leaves nothing to sample or nothing before it; "
                f"it must be {BLOCK} to frames - {BLOCK}"
            )
        if self.clips < 2 or self.batch < 2 or self.clips % self.batch == 1:
            raise UserError(f"batch {self.batch} leaves a clip of {self.clips} alone; 'other scene' takes two")

    def run_config(self) -> RunConfig:
        """The settings that the blocks are sampled with."""
        told = {key: getattr(self, key) for key in ("model_root", "generator_ckpt", "seed")}
        steps = {"denoising_step_list": self.steps} if self.steps else {}
        config = load_config(self.config, {**told, "num_output_frames": self.frames, **steps})
        if not config.layout().memory:
            raise UserError(
                f"config {self.config} retrieves nothing; use one with memory, such as configs/tinyworld_latentmem.yaml"
            )
        return config


def main() -> None:
    settings = load_settings(RecallSettings, None, sys.argv[1:])
    print(markdown(*summary(recall(settings, lambda line: print(line, flush=True)))))


@dataclass
class KeepTrue:
    """A sampler that leaves the true latents behind and keeps what `sampler` makes aside.

    Attributes:
        truth: [B, F, C, h, w].
        first: first latent frame that is sampled at all.
        made: a block's first frame -> its sample.
    """

    sampler: Sampler
    truth: torch.Tensor
    first: int
    made: dict[int, torch.Tensor]
    start: int = 0

    def __call__(self, flow: Callable, noise: torch.Tensor, renoise: Callable[[int], torch.Tensor]) -> torch.Tensor:
        start, self.start = self.start, self.start + noise.shape[1]
        if start >= self.first:
            self.made[start] = self.sampler(flow, noise, renoise)
        return self.truth[:, start : self.start]


@dataclass
class TruePlaces:
    """Retrieval by the camera's truth: the candidates whose views are nearest to that of the block, or farthest.

    Attributes:
        camera: [B, F] pixels.
        rule: near, far or none.
    """

    camera: np.ndarray
    rule: str
    block: int = 3
    end: int = 0

    def add(self, latents: torch.Tensor) -> None:
        self.end += latents.shape[1]

    def drop(self, frame: int) -> None:
        raise AssertionError("nothing is dropped from a memory without bounds")

    def select(self, candidates: Sequence[int], k: int) -> Selection:
        k = 0 if self.rule == "none" else k
        due = self.camera[:, self.end : self.end + self.block].mean(1, keepdims=True)
        distance = np.abs(self.camera[:, list(candidates)] - due) * (-1 if self.rule == "far" else 1)
        ranked = np.argsort(distance, axis=1, kind="stable")[:, :k]
        frames = tuple(tuple(candidates[i] for i in row) for row in ranked)
        likeness = tuple(tuple((-distance[b, row]).tolist()) for b, row in enumerate(ranked))
        return Selection(self.end, frames, likeness)


class NextSample(TieredMemory):
    """A memory that hands out the records of the next sample of the batch."""

    def __init__(self, tiers: Sequence[Tier], codec: Codec, batch: int) -> None:
        super().__init__(tiers, codec)
        self.batch = batch

    def fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        super().fetch(frame, (sample + 1) % self.batch, out)


def recall(settings: RecallSettings, say: Callable[[str], None]) -> Errors:
    """Mean square error of the sampled latents for each condition, part of the picture and clip.

    Normalised latents have unit deviation, so 2 is the error of an unrelated draw.
    """
    captions = [held_out(i).caption for i in range(settings.clips)]
    pipe = load(settings.run_config(), captions)
    errors: Errors = {condition: {part: {} for part in PARTS} for condition in CONDITIONS}
    for first in range(0, settings.clips, settings.batch):
        clips = range(first, min(first + settings.batch, settings.clips))
        truth, camera = true_latents(pipe, clips, settings.frames)
        for condition in CONDITIONS:
            made = sample(pipe, [captions[i] for i in clips], clips, truth, camera, condition, settings.first)
            for part, found in zip(PARTS, mistakes(made, truth, camera), strict=True):
                errors[condition][part].update(
                    {clip: float(x) for clip, x in zip(clips, found, strict=True) if np.isfinite(x)}
                )
        say(f"recall: {clips.stop} of {settings.clips} clips")
    return errors


def true_latents(pipe: Pipeline, clips: range, frames: int) -> tuple[torch.Tensor, np.ndarray]:
    """Normalised latents [B, F, C, h, w] of held-out clips and the camera [B, F] at each one's last frame."""
    shown = [held_out(i, pixel_frames(frames)) for i in clips]
    video = to_video(np.stack([clip.video for clip in shown])).transpose(1, 2)  # [B, T, 3, H, W]
    return encode(pipe.vae, video), np.stack([clip.camera[::ONE_LATENT] for clip in shown])


def sample(
    pipe: Pipeline,
    captions: Sequence[str],
    clips: Sequence[int],
    truth: torch.Tensor,
    camera: np.ndarray,
    condition: str,
    first: int,
) -> dict[int, torch.Tensor]:
    """Each sampled block [B, 3, C, h, w] by its first frame, in the true past, with the condition's memory."""
    rule, mixed = CONDITIONS[condition]
    policy, params, batch = build.build_policy(pipe.config), pipe.model.params, len(truth)
    store = [RamTier("host", truth.shape[1])], build_codec("same", pipe.model.dtype)
    memory = NextSample(*store, batch) if mixed else TieredMemory(*store)
    cache = KVCache(params, policy, *truth.shape[-2:], batch, memory, pipe.device, pipe.model.dtype)
    sampler = KeepTrue(build.build_sampler(pipe.config), truth.to(pipe.device), first, {})
    text = torch.stack([pipe.embeddings[caption] for caption in captions]).to(pipe.device)
    noise = SeededNoise(pipe.config.seed, [(clip, 0) for clip in clips])
    if rule in SELECTIONS:
        retrieval = Retrieval(pipe.descriptor, SELECTIONS[rule])
    else:
        retrieval = TruePlaces(camera, rule, policy.layout.block)
    for _ in rollout(
        pipe.model, text, policy, cache, retrieval, sampler, noise, truth.shape[1], tuple(truth.shape[2:])
    ):
        pass
    return sampler.made


def mistakes(made: dict[int, torch.Tensor], truth: torch.Tensor, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean square error [B] of the samples over the whole view, and over the columns that their block uncovers.

    Of the columns, the rows above the subject's lane count, as where it runs is no matter of memory. A column
    is new when at least half of it was out of view in the frame before the block; NaN for a clip in which none is.
    """
    squares, news = [], []
    for start, latents in made.items():
        stop = start + latents.shape[1]
        squares.append((latents - truth[:, start:stop].to(latents.device)).square().mean(2).cpu().numpy())
        news.append(uncovered(camera[:, start:stop], camera[:, start - 1]))
    error, new = np.concatenate(squares, 1), np.concatenate(news, 1)  # [B, F, rows, columns], [B, F, columns]
    above = error[:, :, : LANE // CELL].mean(2)
    with np.errstate(invalid="ignore"):
        return error.mean((1, 2, 3)), (above * new).sum((1, 2)) / new.sum((1, 2))


def uncovered(camera: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, F, columns] whether each latent column of the views at `camera` [B, F] lies outside that at `before` [B]."""
    middles = camera[..., None] + CELL * np.arange(VIEW // CELL) + CELL / 2
    return np.abs(middles - before[:, None, None] - VIEW / 2) >= VIEW / 2


def summary(errors: Errors) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Difference]]]:
    """(mean error of each condition, paired differences: the true place to each of the others, rule to rule)."""
    means = {name: {part: estimate(parts[part].values()) for part in PARTS} for name, parts in errors.items()}
    pairs = [(name, "true place") for name in CONDITIONS if name != "true place"]
    pairs.append(("most similar", "around the most similar"))
    found = {f"{b} - {a}": {part: compare(errors[a][part], errors[b][part]) for part in PARTS} for a, b in pairs}
    return means, found


def markdown(means: dict[str, dict[str, Estimate]], differences: dict[str, dict[str, Difference]]) -> str:
    """The table: errors by condition, then paired differences; 95% intervals over clips."""
    lines = [f"| memory | {' | '.join(PARTS)} |", "|---" * (1 + len(PARTS)) + "|"]
    for sign, rows in (("", means), ("+", differences)):
        for name, row in rows.items():
            cells = [f"{row[part]:{sign}.3f}" for part in PARTS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(means: dict[str, dict[str, Estimate]], differences: dict[str, dict[str, Difference]]) -> dict:
    return {
        kind: {name: {part: asdict(x) for part, x in row.items()} for name, row in rows.items()}
        for kind, rows in (("error", means), ("difference", differences))
    }


if __name__ == "__main__":
    run(main)
