"""Make the README's picture of a place that returns: `python -m docs.place_returns [CAPTION]`.

One held-out caption, made from one noise without memory, and with memory that a draft asks. Drawn is the place that
returned most changed without memory, and the place of that time with it: when it is first seen, a frame while it is out
of view, and when it is there again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline import load
from pipeline.samples import Sample
from tinyworld.judging.revisits import ALIGNED_BY, Return, find_returns
from tinyworld.judging.track import CameraTrack, find_shift
from tinyworld.world.film import held_out
from tinyworld.world.scene import FPS, ONE_LATENT
from utils.errors import run
from utils.files import atomic

PICTURE = Path(__file__).parent / "place_returns.png"
CONFIG = "configs/tinyworld_latentmem.yaml"
ROWS = {
    "without memory": {"recent_exclude": 120},
    "with memory": {"query": "draft"},
}
WINDOW = 18  # latent frames
SCALE = 3
LABEL = 24
GAP = 6


@dataclass(frozen=True)
class Seen:
    """A video's latent frames, as the judge takes them, and where its camera is.

    Attributes:
        frames: [latents, HEIGHT, VIEW, 3] uint8.
        positions: [latents] pixels.
    """

    frames: np.ndarray
    positions: np.ndarray

    def changed(self, found: Return) -> float:
        """How much a place differs when it returns, in levels."""
        return find_shift(self.frames[found.first], self.frames[found.later], ALIGNED_BY).error


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 37
    videos = [make(number, sizes) for sizes in ROWS.values()]
    returns = [find_returns(video.positions, WINDOW) for video in videos]
    most_changed = max(returns[0], key=videos[0].changed)
    strips = []
    for name, video, found in zip(ROWS, videos, returns, strict=True):
        strips.append(strip(name, video, min(found, key=lambda one: abs(one.later - most_changed.later))))
    whole = Image.new("RGB", (strips[0].width, sum(picture.height for picture in strips)), "white")
    top = 0
    for picture in strips:
        whole.paste(picture, (0, top))
        top += picture.height
    with atomic(PICTURE) as temporary:
        whole.save(temporary, optimize=True)
    print(f"wrote {PICTURE}")


def make(number: int, sizes: dict[str, object]) -> Seen:
    """The video of a held-out caption."""
    said = held_out(number).caption
    pipe = load(CONFIG, [said], model_kwargs=sizes)
    video = np.concatenate([frames[0] for frames in pipe.frames([Sample(said, number)])])
    frames = video[::ONE_LATENT]
    return Seen(frames, CameraTrack.of(frames).positions)


def strip(name: str, video: Seen, found: Return) -> Image.Image:
    """The place first, a frame while it is out of view, the place again."""
    between = slice(found.first, found.later)
    away = found.first + int(np.argmax(np.abs(video.positions[between] - video.positions[found.later])))
    font = ImageFont.load_default(14)
    cells = []
    for said, latent in (("first", found.first), ("away", away), ("again", found.later)):
        frame = Image.fromarray(video.frames[latent])
        frame = frame.resize((frame.width * SCALE, frame.height * SCALE), Image.Resampling.BICUBIC)
        cell = Image.new("RGB", (frame.width + GAP, frame.height + LABEL), "white")
        cell.paste(frame, (0, LABEL))
        ImageDraw.Draw(cell).text((2, 3), f"{name}: {said}, {latent * ONE_LATENT / FPS:.0f} s", "black", font)
        cells.append(cell)
    picture = Image.new("RGB", (sum(cell.width for cell in cells) - GAP, cells[0].height), "white")
    left = 0
    for cell in cells:
        picture.paste(cell, (left, 0))
        left += cell.width
    return picture


if __name__ == "__main__":
    run(main)
