"""Make the picture of a clip that two methods go on from: `python -m docs.continued NATIVE.mp4 LATENTMEM.mp4`."""

import sys
from pathlib import Path

import imageio.v3 as iio
from PIL import Image, ImageDraw, ImageFont

from utils.errors import UserError, run
from utils.files import atomic

PICTURE = Path(__file__).parent / "continued.webp"
LABELS = ("native", "latentmem")
FPS = 16  # of the videos
BORDER = 117  # first frame that was generated: 30 latent frames were given
SECONDS = (4, 6, BORDER / FPS - 1 / FPS, BORDER / FPS, 9, 12, 16, 20)
SCALE = 1.5
LABEL = 18  # pixels of a line of text


def main() -> None:
    if len(sys.argv) != 1 + len(LABELS):
        raise UserError("name two videos: python -m docs.continued NATIVE.mp4 LATENTMEM.mp4")
    videos = [iio.imread(path) for path in sys.argv[1:]]  # [T, H, W, 3]
    height, width = (round(SCALE * size) for size in videos[0].shape[1:3])
    picture = Image.new("RGB", (len(SECONDS) * (width + 4), len(LABELS) * (height + LABEL) + LABEL), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for column, second in enumerate(SECONDS):
        x, frame = column * (width + 4), round(second * FPS)
        kind = "given" if frame < BORDER else "generated"
        draw.text((x + 2, 2), f"{second:.1f} s, {kind}", "black", font)
        for row, (label, video) in enumerate(zip(LABELS, videos, strict=True)):
            y = LABEL + row * (height + LABEL)
            picture.paste(Image.fromarray(video[frame]).resize((width, height), Image.Resampling.BICUBIC), (x, y))
            if column == 0:
                draw.text((x + 2, y + height + 2), label, "black", font)
    with atomic(PICTURE) as temporary:
        picture.save(temporary, format="WEBP", quality=80)
    print(f"wrote {PICTURE}, {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    run(main)
