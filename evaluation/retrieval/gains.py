"""What each frame of the past gains for later blocks: `python -m evaluation.retrieval.gains CONFIG --data FOLDER`.

A frame is worth what it lowers the frozen backbone's denoising error of what really came next: each clip of a corpus
is given to the engine block by block, and a block is noised and its flow predicted with nothing in memory, and with
each of some earlier frames alone, from the same noise. The gains lie beside each clip, `latent_000007.gains.json`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from ae.dataset import find_latents, open_latents
from ae.usefulness_train import SUFFIX
from pipeline.build import load
from pipeline.config import RunConfig, load_config
from pipeline.generation import Generation
from pipeline.noise import SeededNoise
from pipeline.pipeline import Pipeline
from pipeline.retrieval import Selection
from utils.command_line import Parser
from utils.errors import UserError, run
from utils.files import require_writable, write_json


def main() -> None:
    args = _parse()
    config = load_config(args.config, args.overrides)
    if not config.policy().retrieves:
        raise UserError(f"config {args.config} retrieves nothing; use one with memory")
    if config.policy().query == "draft":
        raise UserError("query draft chooses what is in memory, and gains are of frames set by hand; set query=last")
    folder = require_writable(args.data)
    paths = [path for path in find_latents(folder) if args.again or not path.with_suffix(SUFFIX).exists()]
    prompts = read_prompts(folder)
    for path in paths:
        if path.name not in prompts:
            raise UserError(f"{folder / 'manifest.json'} tells no prompt of {path.name}; make the corpus again")
    pipeline = None
    for first in range(0, len(paths), args.batch):
        part = paths[first : first + args.batch]
        clips = torch.stack([clip_of(path, part[0]) for path in part])
        if pipeline is None:
            pipeline = load(with_length(config, clips), list(prompts.values()))
        said = [prompts[path.name] for path in part]
        found = measure_gains(pipeline, clips, said, first, args.candidates, args.every, args.levels)
        for path, blocks in zip(part, found, strict=True):
            write_json(path.with_suffix(SUFFIX), {"levels": args.levels, "blocks": blocks})
        print(f"gains of {first + len(part)} of {len(paths)} clips", flush=True)
    print(f"gains of {len(paths)} clips are in {folder}")


class Nothing:
    """An index that finds nothing: what is in memory is set by hand."""

    def add(self, latents: Tensor) -> None: ...

    def drop(self, frame: int) -> None: ...

    def most_similar_pair(self, frames: Sequence[int]) -> tuple[int, int]:
        raise AssertionError("a bank without bounds does not ask")

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: Tensor | None = None
    ) -> Selection | None:
        return None


def measure_gains(
    pipeline: Pipeline,
    clips: Tensor,
    prompts: Sequence[str],
    first: int,
    most: int,
    every: int,
    levels: Sequence[float],
) -> list[list[dict]]:
    """For each clip its scored blocks: `start`, `without` (error with nothing in memory), `frames`, `gains`.

    Args:
        clips: [B, F, C, H, W].
        first: number of the first clip, from which its noise follows.
        most: frames that are scored for a block, evenly spread over its candidates.
        every: blocks from one that is scored to the next.
        levels: timesteps at which the flow is predicted.
    """
    size = pipeline.policy.block
    noise = SeededNoise(pipeline.config.seed, [(first + number, 0) for number in range(len(clips))])
    generation = pipeline.start_from(pipeline.prompt_embeds(prompts), noise, Nothing())
    found: list[list[dict]] = [[] for _ in clips]
    for number, block in enumerate(clips[:, : clips.shape[1] // size * size].split(size, dim=1)):
        block = block.to(pipeline.device, torch.float32)
        candidates = pipeline.policy.candidates(generation.start)
        if candidates and number % every == 0:
            count = min(most, len(candidates))
            frames = [candidates[place * len(candidates) // count] for place in range(count)]
            without = denoising_error(generation, block, None, levels)
            gains = np.stack([without - denoising_error(generation, block, frame, levels) for frame in frames], 1)
            for clip, row in enumerate(gains):
                scored = {"start": generation.start, "without": float(without[clip])}
                found[clip].append(scored | {"frames": frames, "gains": row.tolist()})
        generation.selection = None
        generation.commit(block, generation.begin())
    return found


@torch.no_grad()
def denoising_error(generation: Generation, block: Tensor, frame: int | None, levels: Sequence[float]) -> np.ndarray:
    """Mean square error [B] of the predicted flow of the block to come, with this frame alone in memory or none."""
    samples = len(block)
    generation.selection = None
    if frame is not None:
        generation.selection = Selection(generation.start, ((frame,),) * samples, ((0.0,),) * samples)
    generation.begin()
    errors = []
    for number, level in enumerate(levels):
        sigma = level / 1000
        drawn = generation.noise.draw(generation.start // block.shape[1], number, tuple(block.shape)).to(block.device)
        noisy = (1 - sigma) * block + sigma * drawn
        t = torch.full((samples, 1), float(level), device=block.device)
        flow = generation.model(noisy, t, generation.text, generation.cache).float()
        errors.append((flow - (drawn - block)).square().mean((1, 2, 3, 4)))
    return torch.stack(errors).mean(0).double().cpu().numpy()


def read_prompts(folder: Path) -> dict[str, str]:
    """File of a corpus -> its prompt, as `manifest.json` tells."""
    path = folder / "manifest.json"
    try:
        files = json.loads(path.read_text())["files"]
        return {entry["file"]: entry["prompt"] for entry in files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not tell the prompts of the clips ({type(error).__name__}); make the corpus with "
            "generate_latent.sh or python -m tinyworld.truth"
        ) from error


def clip_of(path: Path, like: Path) -> Tensor:
    """A clip [F, C, H, W] of the same size as another file's."""
    clip = open_latents(path)
    due = open_latents(like).shape
    if clip.shape != due:
        raise UserError(f"latent file {path} is {list(clip.shape)} and {like} {list(due)}; keep one size a folder")
    return clip.float()


def with_length(config: RunConfig, clips: Tensor) -> RunConfig:
    """The config for clips of this length."""
    block = config.num_frame_per_block
    return replace(config, num_output_frames=clips.shape[1] // block * block)


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.retrieval.gains",
        description="Measure what each frame of the past would gain for the blocks after it.",
    )
    add = parser.add_argument
    add("config", help="of a run with memory, whose backbone is frozen")
    add("overrides", nargs="*", metavar="key=value", help="settings of that run")
    add("--data", required=True, metavar="FOLDER", help="of latent_*.pt, with the manifest.json of their prompts")
    add("--candidates", type=int, default=16, metavar="N", help="frames scored for a block, at most [%(default)s]")
    add("--every", type=int, default=2, metavar="N", help="blocks from one that is scored to the next [%(default)s]")
    add("--levels", type=float, nargs="+", default=[1000.0, 833.0], metavar="T", help="noise levels [1000 833]")
    add("--batch", type=int, default=16, metavar="N", help="clips measured together [%(default)s]")
    add("--again", action="store_true", help="also of clips whose gains are there")
    args = parser.parse_args()
    for name in ("candidates", "every", "batch"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; give 1 or more")
    for level in args.levels:
        if not 0 < level <= 1000:
            raise UserError(f"--levels names {level}; give timesteps above 0, and 1000 at most")
    if not Path(args.data).is_dir():
        raise UserError(f"--data {args.data} is not a folder; make a corpus with generate_latent.sh, or name another")
    return args


if __name__ == "__main__":
    run(main)
