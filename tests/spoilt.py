"""Spoilt videos, to show that tinyworld's judge sees what is wrong: `python -m tests.spoilt` prints a table."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from tinyworld.report import PASS, Column, ReportSettings, early, estimates, report_table, whole
from tinyworld.world.film import Clip, held_out
from tinyworld.world.scene import pixel_frames
from utils.errors import run


def recolour(video: np.ndarray) -> np.ndarray:
    """Red, green and blue exchanged."""
    return video[..., [1, 2, 0]]


def blur(video: np.ndarray) -> np.ndarray:
    """A Gaussian of 3 pixels over every frame."""
    blurred = np.empty_like(video)
    for number, frame in enumerate(video):
        blurred[number] = np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(3)))
    return blurred


CHANGES = {"recoloured": recolour, "blurred": blur}


def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first pass of one video, then the rest of another."""
    return np.concatenate([first[:PASS], second[PASS:]])


def partner(clips: Sequence[Clip], index: int) -> Clip:
    """The next clip whose camera starts in the same direction, the next one at all if there is none."""
    rest = [*clips[index + 1 :], *clips[:index]]
    for clip in rest:
        if clip.shot.direction == clips[index].shot.direction:
            return clip
    return rest[0]


def spoilt(short: Sequence[Clip], long: Sequence[Clip], window: int) -> dict[str, Column]:
    """What the judge finds in true videos of which something is wrong.

    `early` sees whole videos spoilt, or another clip's; `whole` those whose first pass is true. The second half of
    a shuffled one is that of the next clip whose camera goes the same way.
    """
    others = [*short[1:], short[0]]
    columns = {"other caption": early([clip.video for clip in others], short)}
    for name, change in CHANGES.items():
        start = early([change(clip.video) for clip in short], short)
        rest = whole([joined(clip.video, change(clip.video)) for clip in long], long, window)
        columns[name] = {**start, **rest}
    shuffled = [joined(clip.video, partner(long, index).video) for index, clip in enumerate(long)]
    columns["shuffled halves"] = whole(shuffled, long, window)
    still = [np.repeat(clip.video[:1], len(clip.video), 0) for clip in long]
    columns["standing still"] = whole(still, long, window)
    return columns


def main() -> None:
    settings = ReportSettings()
    short = [held_out(index, pixel_frames(settings.short_frames)) for index in range(settings.clips)]
    long = [held_out(index, pixel_frames(settings.long_frames)) for index in range(settings.long_clips)]
    print(report_table(estimates(spoilt(short, long, settings.policy().local_attn_size))))


if __name__ == "__main__":
    run(main)
