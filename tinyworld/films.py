"""Videos of held-out captions: made by the pipeline, passed through the codec, laid out on a contact sheet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AutoencoderKLWan
from PIL import Image

from pipeline import load
from pipeline.decode import to_uint8
from pipeline.samples import Sample
from tinyworld.training import vae
from tinyworld.world.film import Clip
from tinyworld.world.scene import FPS
from utils.files import atomic

MARGIN = 2  # white pixels around each frame of a contact sheet


@dataclass(frozen=True)
class Weights:
    """What a video is made with."""

    model_root: str
    generator_ckpt: str
    steps: Sequence[int] | None = None  # denoising steps instead of the config's
    seed: int = 0


def reconstruct(codec: AutoencoderKLWan, video: np.ndarray) -> np.ndarray:
    """A video [T, H, W, 3] uint8 through encoder and decoder."""
    return to_uint8(vae.reconstruct(codec, video[None]))[0]


def generate(
    config: str,
    weights: Weights,
    clips: Sequence[Clip],
    frames: int,
    batch: int,
    first: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> list[np.ndarray]:
    """Videos of the clips' captions, each [T, H, W, 3] uint8, by the pipeline that users have.

    Args:
        frames: latent frames of each.
        batch: videos generated together.
        first: the number of the first clip, from which its noise follows.
        say: is told of the progress.
    """
    if not clips:
        return []
    pipe = load(config, [clip.caption for clip in clips], **overrides(weights, frames))
    videos = []
    for start in range(0, len(clips), batch):
        samples = []
        for number, clip in enumerate(clips[start : start + batch], first + start):
            samples.append(Sample(clip.caption, number))
        blocks = list(pipe.frames(samples))  # each [batch, T of the block, H, W, 3]
        videos.extend(np.concatenate(blocks, axis=1))
        say(f"{len(videos)} of {len(clips)} videos of {frames} latent frames generated")
    return videos


def overrides(weights: Weights, frames: int) -> dict[str, Any]:
    """What is set beside a config to make videos of so many latent frames."""
    found = {
        "model_root": weights.model_root,
        "generator_ckpt": weights.generator_ckpt,
        "num_output_frames": frames,
        "seed": weights.seed,
    }
    if weights.steps:
        found["denoising_step_list"] = list(weights.steps)
    return found


def draw_sheet(
    path: Path, kinds: Sequence[Sequence[np.ndarray]], clips: int, seconds: Sequence[int] = (1, 10, 30)
) -> None:
    """Draw frames at these seconds: a row for each clip, and so many columns for each kind of video.

    Args:
        kinds: for each kind of video, one a clip; of a shorter video its last frame is shown.
    """
    rows = []
    for clip in range(clips):
        cells = []
        for videos in kinds:
            video = videos[clip]
            for second in seconds:
                frame = video[min(FPS * second, len(video) - 1)]
                cells.append(np.pad(frame, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255))
        rows.append(np.concatenate(cells, 1))
    picture = Image.fromarray(np.concatenate(rows))
    twice = picture.resize((picture.width * 2, picture.height * 2))
    with atomic(path) as temporary:
        twice.save(temporary, optimize=True)
