"""The latents of a finished video, made again as its record says, where they were not kept beside it."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RunConfig, load_config
from pipeline.generation import LatentBlock
from pipeline.given import Given, Stored, recalled
from pipeline.latents import LatentFile, open_latents
from pipeline.parent import Parent
from pipeline.pipeline import Pipeline
from pipeline.preflight import preflight
from pipeline.record import identity
from pipeline.run import make
from pipeline.samples import Sample
from utils.claim import claim
from utils.errors import UserError
from utils.processes import leads, rank
from utils.tensors import digest


def remake_latents(parent: Parent, config: RunConfig) -> None:
    """Make the latents of a finished video, unless they are there; of a group's processes all call it.

    Args:
        config: of the run that needs them; it says where weights and memory are.

    Raises:
        UserError: this machine cannot make that video.
    """
    if parent.latents.is_file():
        return
    own = _config_of(parent, config)
    record = parent.record
    given = tuple(recalled(entry, own) for entry in record.get("given", []))
    scenes = parent.scenes if "scenes" in record else ()
    sample = Sample(record["prompt"], record["prompt_index"], record["sample"], scenes, given)
    if rank() == 0:
        print(
            f"{parent.name} has no latents beside it: they are made again, once, as its record says; "
            "keep_latents=true keeps them from the start",
            flush=True,
        )
    found = preflight(own)
    with claim(parent.folder, identity(own, [sample])) as held:
        make(found, [sample], RemadeSink(parent), held)
    if leads() and not parent.latents.is_file():
        raise UserError(f"another run is making {parent.latents}; start this one again when it has ended")
    while not parent.latents.is_file():  # the first process of the group gives them their name
        time.sleep(0.1)


def _config_of(parent: Parent, config: RunConfig) -> RunConfig:
    """The parent's settings, on this run's machine."""
    here = ("generator_ckpt", "model_root", "device", "text_device", "text_cache", "memory")
    tree = dict(parent.record["config"])
    tree |= {name: getattr(config, name) for name in here}
    return load_config(None, tree | {"output_folder": str(parent.folder), "batch_size": 1})


@dataclass(frozen=True)
class RemadeSink:
    """`NAME.latents.npy` of one finished video; implements `pipeline.sinks.Sink`."""

    parent: Parent

    def path(self, sample: Sample) -> Path:
        return self.parent.latents

    def is_finished(self, sample: Sample) -> bool:
        return self.parent.latents.is_file()

    @property
    def growing(self) -> Path:
        return self.parent.latents.with_name(f".{self.parent.latents.name}")

    def made(self, batch: Sequence[Sample], wanted: Sequence[Sample]) -> list[Given]:
        if not self.growing.is_file():
            return []
        return [Stored(self.growing, range(len(open_latents(self.growing))))]

    def write(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        wanted: Sequence[Sample],
        blocks: Iterable[LatentBlock],
        on_block: Callable[[LatentBlock], None],
    ) -> None:
        """See `Sink`; says where the latents are not those that the record has a digest of."""
        config = pipeline.config
        shape = pipeline.format.shape(config.height, config.width)
        file = LatentFile(self.growing, (config.num_output_frames, *shape))
        known = file.frames
        differs = None
        for block, record in zip(blocks, self.parent.record["blocks"], strict=True):
            latents = block.latents[0].float().cpu()
            if differs is None and digest(latents) != record.get("digests", {}).get("latents"):
                differs = block.plan.start
            if block.plan.start >= known:
                file.write(block.plan.start, latents)
            on_block(block)
        if differs is not None:
            print(
                f"note: from latent frame {differs} on they are not the video's to the last bit, as on other hardware, "
                "with other versions or in another batch",
                flush=True,
            )
        os.replace(self.growing, self.parent.latents)
