"""Makes one take: the same parts as inference.sh, with a hand on the wheel between two blocks."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.config import RunConfig
from pipeline.course import forked, samples_of
from pipeline.generation import Generation, LatentBlock
from pipeline.given import Given
from pipeline.pipeline import Pipeline
from pipeline.preflight import Preflight, preflight
from pipeline.prompts import Prompt
from pipeline.record import Digests, identity, made_of
from pipeline.samples import Sample
from pipeline.script import Script
from pipeline.sinks import VideoSink
from pipeline.unfinished import Unfinished
from serve.blocks import describe_block, describe_plan
from serve.models import Models
from serve.steering import Steering, Turns
from serve.takes import NAME, Take
from utils.claim import claim
from utils.files import require_writable, write_json

SMOOTH = 0.3  # weight of the latest block in the rate


class Making:
    """One take in the making.

    Args:
        config: of the take.
        tell: called whenever the take is not as it was.
    """

    def __init__(
        self, take: Take, config: RunConfig, models: Models, steering: Steering, turns: Turns, tell: Callable[[], None]
    ) -> None:
        self.take, self.config, self.models, self.steering = take, config, models, steering
        self.turns, self.tell = turns, tell
        self.plan: list[list] = []  # of the block that is being made
        self.number = 0  # of the block that is being made
        self.first = 0  # pixel frame with which the next decoded block begins
        self.seconds = 0.0  # a block, lately
        self.sampled = 0  # blocks that were sampled, not given

    def run(self) -> None:
        """Make what is missing of it; the files are whole at the end.

        Raises:
            SetAside: it was stopped between two blocks.
            UserError: it cannot be made.
        """
        take, config = self.take, self.config
        with self.turns.turn(take):
            found = preflight(config)
            weights = Digests(found.files, config.text_cache)
            sample = self._sample(found, weights)
            pipeline = self.models.pipeline(found)
            pipeline.prompt_embeds(sample.prompts)
        folder = require_writable(take.folder, need_bytes=1 << 24)
        sink = VideoSink(folder, defaultdict(lambda: NAME), config, weights, self._keep_frames)
        with claim(folder, identity(config, [sample])) as held:
            held.take(f"{NAME}.mp4")
            self._accept_switches(sample, weights)
            take.segments = list(sample.segments)
            batch = [sample]
            made = sink.made(batch, batch)
            sink.write(pipeline, batch, batch, self._blocks(pipeline, batch, made, weights), lambda block: None)

    def _sample(self, found: Preflight, weights: Digests) -> Sample:
        """What is to be made: prompts, starts and blocks that are given, and the switches of an earlier time."""
        if self.config.parent is not None:
            sample, _ = forked(found, weights())
        else:
            samples, _ = samples_of(found, [Prompt(0, self.config.prompt)])
            sample = samples[0]
        return with_scenes(sample, self.take.scenes)

    def _accept_switches(self, sample: Sample, weights: Digests) -> None:
        """Where a kill came between a switch and the note of it among the unfinished files, note it."""
        path = self.take.folder / f"{NAME}.mp4"
        unfinished = Unfinished(path, made_of(self.config, sample, weights()))
        note = unfinished.folder / "made_of.json"
        try:
            there = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if _but_scenes(there) == _but_scenes(unfinished.made_of):
            write_json(note, unfinished.made_of)

    def _blocks(
        self, pipeline: Pipeline, batch: list[Sample], made: list[Given], weights: Digests
    ) -> Iterator[LatentBlock]:
        """As `Pipeline.blocks`, of one sample, between whose blocks wishes are heard."""
        noise = pipeline.noise_of(batch, self.config.seed)
        past, first = batch[0].past, noise
        if past is not None and past.seed is not None:
            first = pipeline.noise_of(batch, past.seed)
        with self.turns.turn(self.take):
            generation = pipeline.start(batch[0], first)
        script = Script(batch, made, pipeline.vae)
        while generation.start < self.config.num_output_frames:
            self.steering.wait(self.turns, self.take)
            began = time.monotonic()
            with self.turns.turn(self.take):
                latents = script.given(generation.coming)
                if latents is None and (segment := self.steering.take_switch(generation.start)):
                    batch[0] = self._switch(batch[0], segment, weights)
                    script = Script(batch, made, pipeline.vae)
                if switch := script.switch(generation.start):
                    prompts, how = switch
                    generation.switch(pipeline.prompt_embeds(prompts), how)
                if past is not None and generation.start == past.frames.stop:
                    generation.renoise(noise)
                block = self._block(generation, latents)
            yield block
            if latents is None:
                self._count(time.monotonic() - began)

    def _block(self, generation: Generation, latents: torch.Tensor | None) -> LatentBlock:
        """The next block; given, where there are latents [1, F, C, H, W]."""
        plan = generation.begin()
        self.number, self.plan = plan.start // len(plan.own), describe_plan(plan)
        self.tell()
        if latents is not None:
            return generation.take(latents.to(generation.device), plan)
        return generation.commit(generation.denoise(plan), plan)

    def _switch(self, sample: Sample, segment: Any, weights: Digests) -> Sample:
        """The sample with one more scene; it is on disk before a block is made of it."""
        if not segment.start:  # nothing was made under the first prompt
            segment = segment._replace(how=None)
        self.take.scenes = [scene for scene in self.take.scenes if scene.start != segment.start] + [segment]
        changed = with_scenes(sample, [segment])
        self.take.segments = list(changed.segments)
        self.take.save()
        unfinished = Unfinished(self.take.folder / f"{NAME}.mp4", made_of(self.config, changed, weights()))
        if unfinished.folder.is_dir():
            write_json(unfinished.folder / "made_of.json", unfinished.made_of)
        return changed

    def _count(self, seconds: float) -> None:
        self.sampled += 1
        if self.sampled == 1:
            self.seconds = seconds
        else:
            self.seconds += SMOOTH * (seconds - self.seconds)

    def _keep_frames(self, block: LatentBlock, frames: np.ndarray) -> None:
        """A block's frames [1, T, H, W, 3] on their way to the file: keep pictures of them for the pages."""
        number = block.plan.start // len(block.plan.own)
        before = self.take.blocks.found.get(number - 1)
        first = before["first"] + before["frames"] if before else 0
        self.take.preview.write(number, frames[0])
        self.take.blocks.add(describe_block(block, number, first, frames[0]))
        self.tell()


def with_scenes(sample: Sample, scenes: list) -> Sample:
    """A sample with further scenes, each in place of those that were to begin at or after it until the next."""
    for scene in scenes:
        kept = [segment for segment in sample.segments if segment.start != scene.start]
        sample = replace(sample, scenes=tuple(sorted([*kept, scene])))
    return sample


def _but_scenes(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("scenes", "prompt")}
