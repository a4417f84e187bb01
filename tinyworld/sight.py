"""What a frame shows, read off its pixels with fixed rules: ground and time, objects, the subject, and where it is."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from tinyworld.captions import COLOURS, GROUNDS, KINDS, SUBJECTS, TIMES
from tinyworld.render import COAT, DARK, LANE, LEGS, LIGHT, PAINT, ROCK, SHAPES, SKY, SOIL, WOOD, Canvas
from tinyworld.world import HEIGHT, VIEW, WIDTH, Sprite

SHADES = np.linspace(0.84, 1.16, 5)[:, None]
NEAR = {"noon": 50.0, "dusk": 50.0, "night": 38.0}  # how far a pixel may be from an object's paint
LEVELS = 64  # of each channel in the table of colours
LEAST_COAT = 40  # pixels in its coat that make the subject seen
SIDE = 16  # silhouettes are compared at this size
PLACE = {"house": 40.0, "tree": 31.0, "tower": 31.0, "balloon": 17.0}  # usual height of a coloured part's centre
SHAPE = {"house": (27, 15), "tree": (25, 24), "tower": (17, 39), "balloon": (20, 21)}  # and its width and height


@dataclass(frozen=True)
class Sighting:
    """An object seen in a frame; x is its centre in the view, kind None where its shape is none of the world's."""

    colour: str
    kind: str | None
    x: float


def setting(video: np.ndarray) -> tuple[str, str]:
    """(ground, time): the nearest of the nine to the colours of the sky's top and of the soil at the bottom."""
    top = np.median(video[:, :6].reshape(-1, 3), 0)
    soil = np.median(video[:, -8:].reshape(-1, 3), 0)
    time = min(TIMES, key=lambda name: np.abs(np.asarray(SKY[name][0]) - top).sum())
    lit = {name: np.asarray(SOIL[name]) * LIGHT[time] * 0.84 for name in GROUNDS}
    return min(GROUNDS, key=lambda name: np.abs(lit[name] - soil).sum()), time


def sightings(frame: np.ndarray, time: str) -> list[Sighting]:
    """Objects that lie wholly in a frame [HEIGHT, VIEW, 3] under the light of `time`.

    An object is a stretch of columns in one paint, 8 to 36 pixels wide and at least 8 high, that touches
    neither side; its kind is the one whose silhouette, size and height in the picture fit best.
    """
    found = []
    owner = _look_up(_owners(time), frame)
    for index, colour in enumerate(COLOURS):
        mask = owner == index
        for left, right in runs(mask.sum(0) >= 3, bridge=2):
            part = mask[:, left:right]
            rows = np.flatnonzero(part.sum(1) >= 3)
            if left == 0 or right == VIEW or not 8 <= right - left <= 36 or len(rows) < 8:
                continue
            found.append(Sighting(colour, _kind(part[rows[0] : rows[-1] + 1], rows[0]), (left + right - 1) / 2))
    return found


def shift(before: np.ndarray, after: np.ndarray, reach: int = 14) -> tuple[int, float]:
    """(pixels that the camera moved between two frames, positive to the right; the mean absolute difference then).

    The motion is the one of at most `reach` pixels at which the frames differ least where they overlap,
    above the subject.
    """
    before, after = before[:LANE].astype(np.float32), after[:LANE].astype(np.float32)

    def difference(d: int) -> float:
        a = before[:, max(d, 0) : VIEW + min(d, 0)]
        b = after[:, max(-d, 0) : VIEW + min(-d, 0)]
        return float(np.abs(a - b).mean())

    differences = {d: difference(d) for d in sorted(range(-reach, reach + 1), key=abs)}
    best = min(differences, key=differences.get)
    return best, differences[best]


def locate(frame: np.ndarray, panorama: np.ndarray) -> int:
    """The camera's position in a known scene [HEIGHT, WIDTH, 3]: where the frame differs least from it, in pixels."""
    views = np.lib.stride_tricks.sliding_window_view(panorama[:LANE].astype(np.float32), VIEW, axis=1)
    differences = np.abs(views - frame[:LANE].transpose(0, 2, 1)[:, None])  # [LANE, places, 3, VIEW]
    return int(differences.mean((0, 2, 3)).argmin())


def subjects(video: np.ndarray, time: str) -> list[str | None]:
    """The subject that each frame of [frames, HEIGHT, VIEW, 3] shows: whose coat has most pixels in its lane.

    None where neither has LEAST_COAT of them.
    """
    coats = _look_up(_coats(time), video[:, LANE:])  # [frames, rows, VIEW]
    counts = np.stack([(coats == index).sum((1, 2)) for index in range(len(SUBJECTS))], 1)
    return [SUBJECTS[row.argmax()] if row.max() >= LEAST_COAT else None for row in counts]


# Tables of colours, and outlines


@cache
def _owners(time: str) -> np.ndarray:
    """Table of the objects' paints under this light, in all their shades, beside all that is no object."""
    top, low = (np.asarray(colour) for colour in SKY[time])
    sky = top + (low - top) * np.linspace(0, 1, 5)[:, None]
    coats, legs = (np.asarray(list(colours.values())) * LIGHT[time] for colours in (COAT, LEGS))
    others = np.concatenate([sky, _things(time), coats, legs, (coats + legs) / 2])
    return _table([np.asarray(PAINT[name]) * LIGHT[time] * SHADES for name in COLOURS], others, time)


@cache
def _coats(time: str) -> np.ndarray:
    """Table of the subjects' coats, beside what else their lane shows."""
    return _table([np.asarray(COAT[name])[None] * LIGHT[time] for name in SUBJECTS], _things(time), time)


def _table(kinds: list[np.ndarray], others: np.ndarray, time: str) -> np.ndarray:
    """For every colour, [LEVELS, LEVELS, LEVELS]: the index of the kind that it is nearest to.

    It is len(kinds) for colours that are far from all of them, or nearer to one of `others` [n, 3].
    """
    near = np.stack([_distance(colours) for colours in kinds])
    plain = near.min(0) > np.minimum(NEAR[time], _distance(others))
    return np.where(plain, len(kinds), near.argmin(0)).astype(np.uint8)


def _look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """What a table says of pixels [..., 3] uint8: [...]."""
    return table[tuple(np.moveaxis(pixels // (256 // LEVELS), -1, 0))]


def _things(time: str) -> np.ndarray:
    """[things, 3] levels of what is neither sky nor object, in the light and in shadow."""
    things = np.asarray([*SOIL.values(), ROCK, WOOD, DARK]) * LIGHT[time]
    return np.concatenate([things, 0.75 * things])


def _distance(colours: np.ndarray) -> np.ndarray:
    """[LEVELS, LEVELS, LEVELS] how far each colour is from the nearest of `colours` [n, 3]."""
    axis = (np.arange(LEVELS, dtype=np.float32) + 0.5) * 256 / LEVELS
    pixels = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return np.min([np.linalg.norm(pixels - colour, axis=-1) for colour in colours.clip(0, 255)], 0)


def runs(flags: np.ndarray, bridge: int) -> list[tuple[int, int]]:
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
