"""Make the README's picture of a place that returns: `python -m docs.place_returns [CAPTION]`.

One held-out caption, made from one noise without memory, and with the encoder of foresight. For each video one return
is drawn: the place when it is first seen, a frame while it is out of view, and the place again.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline import load
from pipeline.samples import Sample
from tinyworld.judging.revisits import find_returns
from tinyworld.judging.track import CameraTrack
from tinyworld.world.film import held_out
from tinyworld.world.scene import FPS, ONE_LATENT
from utils.errors import run
from utils.files import atomic

PICTURE = Path(__file__).parent / "place_returns.png"
CONFIG = "configs/tinyworld_latentmem.yaml"
ROWS = {
    "without memory": {"recent_exclude": 120},
    "with memory": {"compression_method": "useful"},
}
WINDOW = 18  # latent frames
SCALE = 3
LABEL = 24
GAP = 6


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    strips = []
    for name, sizes in ROWS.items():
        pipe = load(CONFIG, [held_out(number).caption], model_kwargs=sizes)
        video = np.concatenate([frames[0] for frames in pipe.frames([Sample(held_out(number).caption, number)])])
        strips.append(strip(name, video))
    width = max(picture.width for picture in strips)
    whole = Image.new("RGB", (width, sum(picture.height for picture in strips)), "white")
    top = 0
    for picture in strips:
        whole.paste(picture, (0, top))
        top += picture.height
    with atomic(PICTURE) as temporary:
        whole.save(temporary, optimize=True)
    print(f"wrote {PICTURE}")


def strip(name: str, video: np.ndarray) -> Image.Image:
    """The place first, a frame while it is away, the place again: of the return that was away longest."""
    latents = video[::ONE_LATENT]  # a frame of each latent, as the judge takes them
    positions = CameraTrack.of(latents).positions
    found = max(find_returns(positions, WINDOW), key=lambda found: found.later - found.first)
    away = int(np.argmax(np.abs(positions[found.first : found.later] - positions[found.later]))) + found.first
    font = ImageFont.load_default(14)
    cells = []
    for said, latent in (("first", found.first), ("away", away), ("again", found.later)):
        frame = Image.fromarray(latents[latent])
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
