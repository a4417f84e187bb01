"""The judge: what a video shows, read off its pixels, and how that compares with its caption.

Videos are [frames, HEIGHT, VIEW, 3] uint8. Every measure is first to be run on true videos: what
it misses there is its own error.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from tinyworld.captions import COLOURS, GROUNDS, KINDS, TIMES, Meaning
from tinyworld.render import LIGHT, PAINT, SHAPES, SKY, SOIL, Canvas
from tinyworld.world import HEIGHT, VIEW, WIDTH, Shot, Sprite

ONE_LATENT = 4  # pixel frames
SHADES = np.linspace(0.84, 1.16, 5)[:, None]
NEAR = {"noon": 50.0, "dusk": 50.0, "night": 38.0}  # how far a pixel may be from an object's paint
SIDE = 16  # silhouettes are compared at this size
PLACE = {"house": 40.0, "tree": 31.0, "tower": 31.0, "balloon": 17.0}  # usual height of a coloured part's centre
SHAPE = {"house": (27, 15), "tree": (25, 24), "tower": (17, 39), "balloon": (20, 21)}  # and its width and height


@dataclass(frozen=True)
class Sighting:
    """An object seen in a frame; x is its centre in the view."""

    colour: str
    kind: str
    x: float


def setting(video: np.ndarray) -> tuple[str, str]:
    """(ground, time): the nearest of the nine to the colours of the sky's top and of the soil at the bottom."""
    top = np.median(video[:, :6].reshape(-1, 3), 0)
    soil = np.median(video[:, -8:].reshape(-1, 3), 0)
    time = min(TIMES, key=lambda name: np.abs(np.asarray(SKY[name][0]) - top).sum())
    lit = {name: np.asarray(SOIL[name]) * LIGHT[time] * 0.84 for name in GROUNDS}
    return min(GROUNDS, key=lambda name: np.abs(lit[name] - soil).sum()), time


def sightings(frame: np.ndarray, time: str) -> list[Sighting]:
    """Objects that lie wholly in a frame [HEIGHT, VIEW, 3] under the light of `time`."""
    found = []
    owner, near = _paint_owner(frame.astype(np.float32), time)
    for index, colour in enumerate(COLOURS):
        mask = near & (owner == index)
        for left, right in _runs(mask.sum(0) >= 3, bridge=2):
            part = mask[:, left:right]
            rows = np.flatnonzero(part.sum(1) >= 3)
            if left == 0 or right == VIEW or not 8 <= right - left <= 36 or len(rows) < 8:
                continue
            kind = _kind(part[rows[0] : rows[-1] + 1], rows[0])
            if kind:
                found.append(Sighting(colour, kind, (left + right - 1) / 2))
    return found


def shows(video: np.ndarray, thing: tuple[str, str], time: str, least: int = 6) -> bool:
    """Whether at least `least` frames show the (colour, kind)."""
    seen = sum(any((s.colour, s.kind) == thing for s in sightings(frame, time)) for frame in video)
    return seen >= least


def shift(before: np.ndarray, after: np.ndarray, reach: int = 14) -> int:
    """Pixels that the camera moved between two frames, positive to the right: where they differ least."""
    before, after = before.astype(np.float32), after.astype(np.float32)

    def difference(d: int) -> float:
        a = before[:, max(d, 0) : VIEW + min(d, 0)]
        b = after[:, max(-d, 0) : VIEW + min(-d, 0)]
        return float(np.abs(a - b).mean())

    return min(range(-reach, reach + 1), key=lambda d: (difference(d), abs(d)))


def moves_as_trained(video: np.ndarray, shot: Shot, tolerance: int = 2) -> float:
    """Share of the steps of one latent frame in which the camera moved as the shot says."""
    camera = shot.camera(len(video))
    starts = range(0, len(video) - ONE_LATENT, ONE_LATENT)
    hits = [
        abs(shift(video[i], video[i + ONE_LATENT]) - (camera[i + ONE_LATENT] - camera[i])) <= tolerance for i in starts
    ]
    return float(np.mean(hits))


def turns(video: np.ndarray) -> int:
    """How often the camera's direction changes, steps without motion left out."""
    steps = [shift(video[i], video[i + 8], reach=18) for i in range(0, len(video) - 8, 8)]
    signs = [np.sign(step) for step in steps if abs(step) >= 6]
    return int(np.sum(np.diff(signs) != 0))


def persistence(video: np.ndarray, shot: Shot, gap: int = 16, every: int = 8) -> tuple[int, int]:
    """(kept, due): objects seen again `gap` frames later, where the camera's motion takes them within the view."""
    camera, (_, time) = shot.camera(len(video)), setting(video[: 3 * gap])
    kept = due = 0
    seen = {i: sightings(video[i], time) for i in range(0, len(video), every)}
    for i in range(0, len(video) - gap, every):
        for sighting in seen[i]:
            x = sighting.x - (camera[i + gap] - camera[i])
            if 22 <= x <= VIEW - 22:
                due += 1
                kept += any(
                    (s.colour, s.kind) == (sighting.colour, sighting.kind) and abs(s.x - x) <= 6 for s in seen[i + gap]
                )
    return kept, due


def revisit_psnr(video: np.ndarray, lap: int = 192) -> float:
    """PSNR in dB between frames one lap apart, which show the same place; NaN for a video of less than a lap."""
    if len(video) <= lap:
        return float("nan")
    error = np.square(video[lap:].astype(np.float32) - video[:-lap].astype(np.float32)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def verdict(video: np.ndarray, meaning: Meaning, seconds: float = 3.0) -> dict[str, bool]:
    """Whether the first seconds show the caption's ground, time of day and first object."""
    first = video[: round(seconds * 16)]
    ground, time = setting(first)
    return {
        "ground": ground == meaning.ground,
        "time": time == meaning.time,
        "object": shows(first[::2], meaning.objects[0], time, least=3),
    }


def _paint_owner(frame: np.ndarray, time: str) -> tuple[np.ndarray, np.ndarray]:
    """Per pixel: the nearest colour's index, and whether it is near enough to be that paint."""
    lit = np.stack([np.asarray(PAINT[colour]) * LIGHT[time] * SHADES for colour in COLOURS]).clip(0, 255)
    distance = np.linalg.norm(frame[:, :, None, None] - lit, axis=-1).min(-1)  # [H, W, colours]
    return distance.argmin(-1), distance.min(-1) < NEAR[time]


def _runs(flags: np.ndarray, bridge: int) -> list[tuple[int, int]]:
    """Stretches [first, last + 1) of set flags, gaps of up to `bridge` ignored."""
    runs: list[tuple[int, int]] = []
    for i in np.flatnonzero(flags):
        if runs and i - runs[-1][1] <= bridge:
            runs[-1] = (runs[-1][0], int(i) + 1)
        else:
            runs.append((int(i), int(i) + 1))
    return runs


def _kind(part: np.ndarray, top: int) -> str | None:
    """The kind whose silhouette, size and place fit a coloured part best; None where none fits."""
    height, width = part.shape
    small = _resize(part)

    def misfit(kind: str) -> float:
        outline = np.mean(small != _silhouette(kind))
        sizes = abs(np.log(width / SHAPE[kind][0])) + abs(np.log(height / SHAPE[kind][1]))
        return float(outline + 0.5 * sizes + abs(top + height / 2 - PLACE[kind]) / 40)

    best = min(KINDS, key=misfit)
    return best if misfit(best) < 0.75 else None


@cache
def _silhouette(kind: str) -> np.ndarray:
    """The coloured part of a kind, as the world paints it, [SIDE, SIDE]."""
    canvas, colour = Canvas(), np.array((255.0, 0.0, 255.0))
    SHAPES[kind](canvas, Sprite(kind, "red", WIDTH / 2, HEIGHT - 8, 1.0), colour, np.zeros(3), False)
    mask = np.abs(canvas.pixels().astype(np.float32)[..., [0, 2]]).min(-1) > 100
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return _resize(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _resize(mask: np.ndarray) -> np.ndarray:
    rows, columns = ((np.arange(SIDE) + 0.5) / SIDE * size for size in mask.shape)
    return mask[rows.astype(int)[:, None], columns.astype(int)]
