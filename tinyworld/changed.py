"""Does a video follow the present of its world or the past: `python -m tinyworld.changed [key=value ...]`.

An object moves while the camera is at the far end (`tinyworld/world/change.py`). The camera passes by, sees where it
stands since, goes away and comes back. The past is the truth, as in `tinyworld.oracle_memory`; what differs is which
view of the place the memory holds: the one before the change, which is no longer true, or the one since.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch

from evaluation.compare.statistics import estimate
from pipeline.bank.bank import Bank
from pipeline.bank.codec import build_codec
from pipeline.bank.tiers import RamTier
from pipeline.build import load
from pipeline.pipeline import Pipeline
from pipeline.preflight import preflight
from pipeline.retrieval import Index, Retrieval, Selection
from pipeline.selection import SELECTIONS
from tinyworld.judging.latent_errors import CELL, uncovered
from tinyworld.oracle_memory import DRAFT, OracleSettings, asking, sample
from tinyworld.places import TruePlaces, choose, in_the_bank
from tinyworld.training.vae import to_video
from tinyworld.world.change import HALF_WIDTH, ChangedClip, move_an_object
from tinyworld.world.film import held_out
from tinyworld.world.scene import LANE, ONE_LATENT, VIEW, pixel_frames
from utils.errors import run
from utils.settings import load_settings, setting
from utils.table import markdown
from wan.vae import encode

MEMORIES = ("none", "the view before the change", "the view since", "most similar", DRAFT)
Errors = dict[str, dict[int, tuple[float, float]]]  # memory -> clip -> error to the present, to the past


@dataclass(frozen=True, kw_only=True)
class ChangedSettings(OracleSettings):
    """The experiment.

    The camera turns at about 27, 57 and 84. From 84 to 114 it comes back to what moved at 27 and was seen once since.
    """

    first: int = setting(84, "first latent frame that is sampled", at_least=1)
    frames: int = setting(114, "latent frames of a clip", at_least=1)


@dataclass
class Views(TruePlaces):
    """The nearest frames by the camera's truth, before a change or since.

    Attributes:
        change: [B] latent frame from which on all frames show what is since.
    """

    change: np.ndarray = field(kw_only=True)

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: torch.Tensor | None = None
    ) -> Selection:
        candidates = in_the_bank(candidates, self.end, self.at_hand)
        since = np.array(candidates) >= self.change[:, None]
        right = since if self.rule == "the view since" else ~since
        return choose(self.end, candidates, np.where(right, self.distance(candidates), np.inf), "near", k)


def main() -> None:
    settings = load_settings(ChangedSettings, None, sys.argv[1:])
    preflight(settings.run_config())
    print(table(measure(settings)))


def measure(settings: ChangedSettings) -> Errors:
    """How far what is sampled where the object stands or stood is from the present, and from the past."""
    found: Errors = {memory: {} for memory in MEMORIES}
    pipe = load(settings.run_config())
    for first in range(0, settings.clips, settings.batch):
        clips = range(first, min(first + settings.batch, settings.clips))
        made_of = [held_out(index, pixel_frames(settings.frames)) for index in clips]
        changed = [move_an_object(clip) for clip in made_of]
        present = encode(pipe.vae, to_video(np.stack([clip.video for clip in changed])))
        past = encode(pipe.vae, to_video(np.stack([clip.video for clip in made_of])))
        camera = np.stack([clip.camera[::ONE_LATENT] for clip in changed])
        captions = [clip.caption for clip in changed]
        for memory in MEMORIES:
            chosen = remember(pipe, changed, camera, memory)
            made = sample(asking(pipe, memory), captions, clips, present, chosen, settings.first)
            now = errors_where_it_moved(made, present, camera, changed)
            then = errors_where_it_moved(made, past, camera, changed)
            for clip, *pair in zip(clips, now, then, strict=True):
                if np.isfinite(pair).all():
                    found[memory][clip] = (float(pair[0]), float(pair[1]))
        print(f"changed: {clips.stop} of {settings.clips} clips", flush=True)
    return found


def remember(pipe: Pipeline, clips: Sequence[ChangedClip], camera: np.ndarray, memory: str) -> tuple[Index, Bank]:
    """What chooses the frames of a memory, and what keeps them."""
    bank = Bank([RamTier("host", camera.shape[1])], build_codec("same", pipe.model.dtype))
    if memory in ("most similar", DRAFT):
        return Retrieval(pipe.descriptor, SELECTIONS["similarity"]), bank
    if memory == "none":
        return TruePlaces(camera, "none", pipe.policy.block), bank
    change = np.array([1 + clip.since // ONE_LATENT for clip in clips])
    return Views(camera, memory, pipe.policy.block, change=change), bank


def errors_where_it_moved(
    made: dict[int, torch.Tensor], truth: torch.Tensor, camera: np.ndarray, clips: Sequence[ChangedClip]
) -> np.ndarray:
    """Mean square error [B] in what a block uncovers of the two places of the object, above the subject's lane.

    NaN where no block uncovers any of them.
    """
    total = np.zeros(len(clips))
    counted = np.zeros(len(clips))
    for start, latents in made.items():
        stop = start + latents.shape[1]
        error = (latents - truth[:, start:stop].to(latents.device)).square().mean(2).cpu().numpy()
        middles = camera[:, start:stop, None] + CELL * np.arange(VIEW // CELL) + CELL / 2
        places = np.array([(clip.moved.x, clip.place) for clip in clips])
        near = np.abs(middles[..., None] - places[:, None, None]).min(-1) <= HALF_WIDTH
        columns = near & uncovered(camera[:, start:stop], camera[:, start - 1])  # [B, F, columns]
        total += (error[:, :, : LANE // CELL].mean(2) * columns).sum((1, 2))
        counted += columns.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return total / counted


def table(errors: Errors) -> str:
    """Markdown: errors to the present and to the past, and the share of the clips that are nearer to the present."""
    rows = [["memory", "error to the present", "error to the past", "nearer to the present"]]
    for memory, clips in errors.items():
        pairs = np.array(list(clips.values()))
        nearer = estimate((pairs[:, 0] < pairs[:, 1]).astype(float))
        rows.append([memory, *(f"{mean:.3f}" for mean in pairs.mean(0)), f"{nearer:.2f}"])
    return markdown(rows)


if __name__ == "__main__":
    run(main)
