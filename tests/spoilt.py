"""Spoilt videos, to show that tinyworld's judge sees what is wrong: `python -m tests.spoilt` prints a table.

`python -m tests.spoilt progression` prints what is new and what moves in true, repeated and still videos.
"""

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from evaluation.compare.statistics import estimate
from evaluation.video.progression import progression
from tinyworld.report import PASS, Column, ReportSettings, early, estimates, report_table, whole
from tinyworld.world.film import Clip, held_out
from tinyworld.world.scene import FPS, pixel_frames
from utils.errors import run
from utils.table import markdown


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


def progression_table(captions: int = 16) -> str:
    """New content and motion of true videos, of their first 5 s repeated, and of their first frame."""
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, list[float]]] = {}
    for index in range(captions):
        video = held_out(index, pixel_frames(120)).video
        still = np.repeat(video[:1], len(video), 0)
        noise = rng.normal(0, 6, (len(video), 1, 1, 1)) + rng.normal(0, 6, video.shape)
        kinds = {
            "true videos": video,
            "first 5 s repeated": np.concatenate([video[:80]] * 6)[: len(video)],
            "standing still": still,
            "standing still, noisy": np.clip(still + noise, 0, 255).astype(np.uint8),
        }
        for name, kind in kinds.items():
            for measured, value in progression(kind, FPS).items():
                found.setdefault(name, {}).setdefault(measured, []).append(value)
    rows = [["", "new content", "motion", "net motion"]]
    for name, row in found.items():
        rows.append([name, *(f"{estimate(values):.2f}" for values in row.values())])
    return markdown(rows)


def main() -> None:
    if sys.argv[1:] == ["progression"]:
        print(progression_table())
        return
    settings = ReportSettings()
    short = [held_out(index, pixel_frames(settings.short_frames)) for index in range(settings.clips)]
    long = [held_out(index, pixel_frames(settings.long_frames)) for index in range(settings.long_clips)]
    print(report_table(estimates(spoilt(short, long, settings.policy().local_attn_size))))


if __name__ == "__main__":
    run(main)
