"""Make the moving picture of the README from the two videos beside it: `python -m docs.side_by_side`."""

from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
from PIL import Image, ImageDraw, ImageFont

from utils.errors import run
from utils.files import atomic

FOLDER = Path(__file__).parent
PICTURE = FOLDER / "native_latentmem.webp"
COLUMNS = (("tinyworld_native.mp4", "native"), ("tinyworld_latentmem.mp4", "latentmem, with memory"))
FPS = 16  # of the videos
STEP = 4  # every so many of their frames are shown,
SHOWN_FPS = 12  # so many a second, three times as fast as they were made
SCALE = 3
LABEL = 26  # pixels of the label above a video
GAP = 8  # pixels between the videos


def frames_of(path: Path) -> Iterator[Image.Image]:
    """The frames that are shown, enlarged."""
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    size = next(reader)["size"]
    larger = (size[0] * SCALE, size[1] * SCALE)
    for number, frame in enumerate(reader):
        if number % STEP == 0:
            yield Image.frombytes("RGB", size, frame).resize(larger, Image.Resampling.BICUBIC)


def side_by_side(left: Image.Image, right: Image.Image, second: float) -> Image.Image:
    """Two frames of one moment, each below its label."""
    font = ImageFont.load_default(16)
    picture = Image.new("RGB", (left.width + GAP + right.width, LABEL + left.height), "white")
    draw = ImageDraw.Draw(picture)
    for frame, x, (_, label) in zip((left, right), (0, left.width + GAP), COLUMNS, strict=True):
        picture.paste(frame, (x, LABEL))
        draw.text((x + 4, 3), label, "black", font)
    draw.text((picture.width - 4, 3), f"{second:.0f} s", "black", font, anchor="ra")
    return picture


def main() -> None:
    videos = [frames_of(FOLDER / name) for name, _ in COLUMNS]
    pictures = []
    for number, (left, right) in enumerate(zip(*videos, strict=True)):
        pictures.append(side_by_side(left, right, number * STEP / FPS))
    with atomic(PICTURE) as temporary:
        first, *others = pictures
        first.save(temporary, save_all=True, append_images=others, duration=1000 // SHOWN_FPS, loop=0, quality=75)
    print(f"wrote {PICTURE}, {len(pictures)} frames, {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    run(main)
