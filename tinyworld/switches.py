"""What happens when the caption changes within a video: `python -m tinyworld.switches [key=value ...]`.

A video of a held-out caption A goes on under another caption B and then under A again, by every rule of
`pipeline.scenes.SWITCHES` and each method. All futures of a method go on from one past, which is made once.
Other videos begin with true frames of the world. What the judge found is kept, so a stopped run goes on
where it was; tables follow when all is there.
"""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.build import load
from pipeline.config import RunConfig, load_config
from pipeline.decode import start_decoder, to_uint8
from pipeline.generation import Generation
from pipeline.pipeline import Pipeline
from pipeline.preflight import preflight
from pipeline.samples import Sample
from pipeline.scenes import SWITCHES
from tinyworld.benchmark import identity
from tinyworld.judging import measure as judge
from tinyworld.judging.switched import VERSION, Course, likeness, measure_switch
from tinyworld.made_with import MadeWith
from tinyworld.results import Unit
from tinyworld.store import Store
from tinyworld.switch_tables import ANEW, NEVER, report
from tinyworld.training.vae import encode
from tinyworld.world.captions import COLOURS, GROUNDS, KINDS, SUBJECTS, TIMES, Meaning, caption
from tinyworld.world.film import Clip, held_out
from tinyworld.world.scene import pixel_frames
from utils.errors import UserError, run
from utils.files import require_writable
from utils.settings import load_settings, require_choice, setting

LATENTMEM = "configs/tinyworld_latentmem.yaml"
WITHIN = {"model_kwargs": {"memory_across_scenes": False}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> config and overrides
    "native": ("configs/tinyworld_native.yaml", {}),
    "latentmem": (LATENTMEM, {}),
    "latentmem_within": (LATENTMEM, WITHIN),
    "latentmem_draft": (LATENTMEM, {"model_kwargs": {"query": "draft"}}),
}
CHANGES = ("ground", "time", "animal", "objects", "scene")


@dataclass(frozen=True, kw_only=True)
class SwitchSettings(MadeWith):
    """tinyworld's switches of the caption."""

    methods: list[str] = setting(list(METHODS), f"which of {', '.join(METHODS)}")
    rules: list[str] = setting(list(SWITCHES), f"which of {', '.join(SWITCHES)}")
    changes: list[str] = setting(["scene"], f"what B has other than A: {', '.join(CHANGES)}; scene is all of them")
    captions: int = setting(32, "held-out captions", at_least=1)
    short: bool = setting(False, "4 captions instead")
    first_blocks: int = setting(8, "blocks under A", at_least=3)
    other_blocks: int = setting(6, "blocks under B", at_least=2)
    back_blocks: int = setting(4, "blocks under A again", at_least=2)
    given_blocks: list[int] = setting([11], "true first blocks of the videos that begin so", at_least=1)
    given_frames: int = setting(78, "length of those in latent frames", at_least=3)
    batch: int = setting(6, "videos generated together", at_least=1)
    folder: str = setting("runs/tinyworld/switches", "where results and tables go", place=True, writes=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("methods", METHODS), ("rules", SWITCHES), ("changes", CHANGES)):
            for value in getattr(self, name):
                require_choice(name, value, known)
        if not self.methods:
            raise UserError("methods is empty; name at least one")

    def course(self, block: int) -> Course:
        """When the captions change."""
        switch = self.first_blocks * block
        back = switch + self.other_blocks * block
        return Course(switch, back, back + self.back_blocks * block, block)

    def run_config(self, method: str) -> RunConfig:
        """The settings that a method generates with."""
        path, own = METHODS[method]
        block = load_config(path).num_frame_per_block
        frames = max(self.course(block).frames, self.given_frames)
        overrides = {**own, **self.overrides(), "num_output_frames": frames}
        if self.given_frames % block or any(count * block >= self.given_frames for count in self.given_blocks):
            raise UserError(
                f"given_frames {self.given_frames} must be a multiple of the block of {block} and more than the "
                f"given_blocks {self.given_blocks}"
            )
        return load_config(path, overrides)

    def units(self) -> list[Unit]:
        return [(prompt, 0) for prompt in range(4 if self.short else self.captions)]


def main() -> None:
    settings = load_settings(SwitchSettings, None, sys.argv[1:])
    stores = open_stores(settings)
    units = settings.units()
    for method, store in stores.items():
        pipeline = None
        for first in range(0, len(units), settings.batch):
            batch = units[first : first + settings.batch]
            if all(store.has(unit) for unit in batch):
                continue
            pipeline = pipeline or load(settings.run_config(method))
            started = time.monotonic()
            for unit, found in measure_batch(settings, pipeline, batch).items():
                store.write(unit, found)
            seconds = time.monotonic() - started
            print(f"{method}: captions {batch[0][0]} to {batch[-1][0]} in {seconds:.0f} s", flush=True)
    report({name: store.read(units) for name, store in stores.items()}, Path(settings.folder))


def open_stores(settings: SwitchSettings) -> dict[str, Store]:
    """The results of every method that is to run; all are checked before."""
    folder = require_writable(settings.folder)
    about = {name: getattr(settings, name) for name in ("rules", "changes", "given_blocks", "given_frames")}
    about |= {"course": [settings.first_blocks, settings.other_blocks, settings.back_blocks], "switch judge": VERSION}
    stores = {}
    for name in settings.methods:
        stores[name] = Store(folder / name, about | identity(preflight(settings.run_config(name))))
    return stores


def measure_batch(settings: SwitchSettings, pipeline: Pipeline, units: Sequence[Unit]) -> dict[Unit, dict[str, Any]]:
    """What the judge finds in all videos of some captions: `CHANGE/RULE/MEASURE` and `given N/MEASURE` -> value."""
    found: dict[Unit, dict[str, Any]] = {unit: {} for unit in units}
    clips = [held_out(prompt, pixel_frames(settings.given_frames)) for prompt, _ in units]
    samples = [Sample(clip.caption, prompt) for clip, (prompt, _) in zip(clips, units, strict=True)]
    course = settings.course(pipeline.policy.block)
    past = Future(pipeline, samples).go_on(course.switch)
    anew = Future(pipeline, [replace(sample, number=1) for sample in samples])
    pictures = anew.go_on(course.frames - course.back).video
    for place, unit in enumerate(units):
        found[unit][f"{ANEW}/place is back"] = likeness(pictures[place][-pixels(course) :], past.video[place])
    for change, rule, others, video in futures_of(settings, past, course, clips):
        for place, unit in enumerate(units):
            measures = measure_switch(video[place], course, clips[place].meaning, others[place])
            for name, value in measures.items():
                found[unit][f"{change}/{rule}/{name}"] = value
    for count in settings.given_blocks:
        video = from_truth(pipeline, samples, clips, count, settings.given_frames)
        for place, unit in enumerate(units):
            measures = judge.measure(video[place], clips[place], pipeline.config.policy().local_attn_size)
            for name, value in measures.items():
                found[unit][f"given {count}/{name}"] = value
    return found


def pixels(course: Course) -> int:
    """Pixel frames of the blocks that are looked at for a place."""
    return pixel_frames(course.frames) - pixel_frames(course.frames - 2 * course.block)


def futures_of(
    settings: SwitchSettings, past: "Future", course: Course, clips: Sequence[Clip]
) -> Iterator[tuple[str, str, list[Meaning], np.ndarray]]:
    """(change, rule, B's meanings, videos [B, T, H, W, 3]) of every future of one past.

    The rule NEVER is the past gone on with under its own caption, measured as if it had changed.
    """
    own = [clip.meaning for clip in clips]
    unchanged = past.fork().go_on(course.frames).video
    for change in settings.changes:
        others = [changed(meaning, change) for meaning in own]
        yield change, NEVER, others, unchanged
        for rule in settings.rules:
            future = past.fork()
            future.generation.switch([caption(meaning) for meaning in others], rule)
            future.go_on(course.back)
            future.generation.switch([clip.caption for clip in clips], rule)
            yield change, rule, others, future.go_on(course.frames).video


def changed(meaning: Meaning, change: str) -> Meaning:
    """B's caption: the next ground, time and animal of the world's, or as many objects of other looks; or all."""

    found = {}
    if change in ("ground", "scene"):
        found["ground"] = _following(GROUNDS, meaning.ground)
    if change in ("time", "scene"):
        found["time"] = _following(TIMES, meaning.time)
    if change in ("animal", "scene"):
        found["subject"] = _following(SUBJECTS, meaning.subject)
    if change in ("objects", "scene"):
        found["objects"] = _other_looks(meaning.objects)
    return replace(meaning, **found)


def _other_looks(objects: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """As many objects in other colours and shapes, none of which is among these."""
    turned = [(_following(COLOURS, colour), _following(KINDS, kind)) for colour, kind in objects]
    for _ in KINDS:
        if not set(turned) & set(objects):
            return tuple(turned)
        turned = [(colour, _following(KINDS, kind)) for colour, kind in turned]
    free = [look for look in itertools.product(COLOURS, KINDS) if look not in objects]
    return tuple(free[:: len(free) // len(objects)][: len(objects)])


def _following(known: Sequence[str], value: str) -> str:
    return known[(known.index(value) + 1) % len(known)]


@torch.no_grad()
def from_truth(
    pipeline: Pipeline, samples: Sequence[Sample], clips: Sequence[Clip], count: int, frames: int
) -> np.ndarray:
    """Videos [B, T, H, W, 3] whose first blocks are the true clips', encoded."""
    end = count * pipeline.policy.block
    truth = np.stack([clip.video[: pixel_frames(end)] for clip in clips])
    latents = encode(pipeline.vae, truth).float().to(pipeline.device)  # [B, F, C, h, w]
    future = Future(pipeline, samples)
    for start in range(0, end, pipeline.policy.block):
        future.take(future.generation.give(latents[:, start : start + pipeline.policy.block]).latents)
    return future.go_on(frames).video


class Future:
    """Videos in the making, with their frames so far; `fork` costs a copy of the past, not the past."""

    def __init__(self, pipeline: Pipeline, samples: Sequence[Sample]) -> None:
        self.pipeline = pipeline
        self.generation: Generation = pipeline.start(list(samples))
        self.generation.kept = None
        self.decoder = start_decoder(pipeline.vae)
        self.parts: list[np.ndarray] = []

    @property
    def video(self) -> np.ndarray:
        """[B, T, H, W, 3] of bytes."""
        return np.concatenate(self.parts, axis=1)

    def take(self, latents: torch.Tensor) -> None:
        """Decode a block."""
        self.parts.append(to_uint8(self.decoder(latents)))

    def go_on(self, frame: int) -> "Future":
        """Sample blocks up to a latent frame."""
        while self.generation.start < frame:
            self.take(self.generation.step().latents)
        return self

    def fork(self) -> "Future":
        """Another future of the same past."""
        twin = object.__new__(Future)
        twin.pipeline = self.pipeline
        twin.generation = self.generation.fork()
        twin.decoder = start_decoder(self.pipeline.vae)
        twin.decoder.restore([self.decoder.state(sample) for sample in range(self.generation.shape[0])])
        twin.parts = list(self.parts)
        return twin


if __name__ == "__main__":
    run(main)
