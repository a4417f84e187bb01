"""Retrieval by place, which bounds what a rule can bring: the nearest frames, the farthest, or another scene's.

Where the true past is given, the places are the camera's truth (`TruePlaces`). In a video of the backbone's own they
are read off its pictures as they come (`OwnTrack`), and where the next block will be is extrapolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from pipeline.bank.bank import Bank
from pipeline.bank.codec import Codec, build_codec
from pipeline.bank.tiers import RamTier, Tier
from pipeline.decode import Decoder, start_decoder, to_uint8
from pipeline.generation import Generation
from pipeline.kv_cache import Cache, KVCache, ring_frames
from pipeline.noise import NoiseSource
from pipeline.pipeline import Pipeline
from pipeline.retrieval import Index, Selection
from tinyworld.judging.track import find_shift
from tinyworld.world.scene import ONE_LATENT

# what the memory of a row holds -> (which candidates, whether the records are those of the next sample of the batch)
MEMORIES = {
    "oracle": ("near", False),
    "wrong_place": ("far", False),
    "other_scene": ("near", True),
}


class ByPlace:
    """An index that knows where frames are, and forgets none."""

    def drop(self, frame: int) -> None:
        raise AssertionError("nothing is dropped from a bank without bounds")

    def most_similar_pair(self, frames: Sequence[int]) -> tuple[int, int]:
        raise AssertionError("a bank without bounds does not ask")


def in_the_bank(candidates: Sequence[int], end: int, at_hand: int) -> list[int]:
    """The candidates before the latest `at_hand` of `end` frames."""
    if not at_hand:
        return list(candidates)
    return [frame for frame in candidates if frame < end - at_hand]


def choose(end: int, candidates: Sequence[int], distance: np.ndarray, rule: str, k: int) -> Selection:
    """The `k` candidates of each sample whose views are nearest to a place, or farthest from it.

    Args:
        end: the block's first frame.
        distance: [B, candidates] pixels.
        rule: near, far or none.
    """
    if rule == "far":
        distance = -distance
    wanted = 0 if rule == "none" else k
    frames, similarities = [], []
    for row in distance:
        ranked = np.argsort(row, kind="stable")[:wanted]
        frames.append(tuple(candidates[i] for i in ranked))
        similarities.append(tuple((-row[ranked]).tolist()))
    return Selection(end, tuple(frames), tuple(similarities))


@dataclass
class TruePlaces(ByPlace):
    """Retrieval by the camera's truth: the candidates whose views are nearest to the block's last one, or farthest.

    Attributes:
        camera: [B, F] pixels.
        rule: near, far or none.
        at_hand: latest frames that are not fetched from a bank; not retrieved where the bank is to hand out another's.
    """

    camera: np.ndarray
    rule: str
    block: int
    at_hand: int = 0
    end: int = 0

    def add(self, latents: torch.Tensor) -> None:
        self.end += latents.shape[1]

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: torch.Tensor | None = None
    ) -> Selection:
        candidates = in_the_bank(candidates, self.end, self.at_hand)
        return choose(self.end, candidates, self.distance(candidates), self.rule, k)

    def distance(self, frames: Sequence[int]) -> np.ndarray:
        """[B, frames] pixels from the block's last view, which uncovers most."""
        last = self.end + self.block - 1
        return np.abs(self.camera[:, list(frames)] - self.camera[:, last, None])


@dataclass
class OwnTrack(ByPlace):
    """Retrieval by the places that a video itself shows.

    Finished frames are decoded; the shift from each to the next is the camera's step. The next block's last frame is
    expected where the last two steps lead: the first block after a turn is looked for beyond it.

    Attributes:
        decoder: of this batch alone.
        rule: near or far.
        block: latent frames.
        at_hand: latest frames that are not fetched from a bank; not retrieved where the bank is to hand out another's.
    """

    decoder: Decoder
    rule: str
    block: int
    at_hand: int = 0
    positions: list[np.ndarray] = field(default_factory=list)  # [B] pixels for each frame
    frames: np.ndarray | None = None  # [B, H, W, 3] the last ones

    def add(self, latents: torch.Tensor) -> None:
        pictures = to_uint8(self.decoder(latents))  # [B, T, H, W, 3]
        last_of_each = pictures[:, (pictures.shape[1] - 1) % ONE_LATENT :: ONE_LATENT]
        for frames in np.moveaxis(last_of_each, 1, 0):
            if self.frames is None:
                self.positions.append(np.zeros(len(frames), int))
            else:
                steps = [find_shift(before, after).pixels for before, after in zip(self.frames, frames, strict=True)]
                self.positions.append(self.positions[-1] + np.array(steps))
            self.frames = frames

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: torch.Tensor | None = None
    ) -> Selection:
        end = len(self.positions)
        candidates = in_the_bank(candidates, end, self.at_hand)
        step = (self.positions[-1] - self.positions[-3]) / 2
        place = self.positions[-1] + step * self.block
        there = (
            np.stack([self.positions[frame] for frame in candidates], 1) if candidates else np.zeros((len(place), 0))
        )
        return choose(end, candidates, np.abs(there - place[:, None]), self.rule, k)


class NextSample(Bank):
    """A bank that hands out the records of the next sample of the batch."""

    def __init__(self, tiers: Sequence[Tier], codec: Codec, batch: int) -> None:
        super().__init__(tiers, codec)
        self.batch = batch

    def fetch(self, frame: int, sample: int, out: torch.Tensor) -> None:
        super().fetch(frame, (sample + 1) % self.batch, out)


@dataclass
class BoundingPipeline(Pipeline):
    """A pipeline whose memory holds what a name in MEMORIES says, whatever descriptor and rule its config names."""

    holds: str = "oracle"

    def start_from(
        self,
        prompt_embeds: torch.Tensor,
        noise: NoiseSource,
        index: Index | None = None,
        cache: Cache | None = None,
    ) -> Generation:
        """See `Pipeline`; index and cache are this pipeline's own."""
        assert isinstance(self.vae, AutoencoderKLWan)
        batch = len(prompt_embeds)
        rule, of_the_next_sample = MEMORIES[self.holds]
        at_hand = ring_frames(self.policy) if of_the_next_sample else 0
        index = OwnTrack(start_decoder(self.vae), rule, self.policy.block, at_hand)
        cache = self.build_cache(batch, index)
        if of_the_next_sample:
            tiers = [RamTier("host", self.config.num_output_frames)]
            bank = NextSample(tiers, build_codec("same", self.model.dtype), batch)
            cache = KVCache(self.frame_shape(batch), self.policy, bank, self.device, self.model.dtype)
        return super().start_from(prompt_embeds, noise, index, cache)


def bounding(pipeline: Pipeline, holds: str) -> BoundingPipeline:
    """The same pipeline with another memory, a name in MEMORIES."""
    return BoundingPipeline(**vars(pipeline), holds=holds)
