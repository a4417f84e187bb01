"""What one frame shows, read off its pixels with fixed rules: ground and time of day, objects, the subject.

Nothing here is trained. The rules know the world's paints and outlines, and `tests/test_tinyworld_judging.py` shows
that they find everything in true videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tinyworld.world.canvas import Canvas
from tinyworld.world.captions import COLOURS, GROUNDS, KINDS, SUBJECTS, TIMES
from tinyworld.world.palette import COAT, DARK, LEGS, LIGHT, PAINT, ROCK, SKY, SOIL, WOOD
from tinyworld.world.render import SHAPES
from tinyworld.world.scene import HEIGHT, LANE, VIEW, WIDTH, Sprite

SHADES = np.linspace(0.84, 1.16, 5)[:, None]  # of an object's paint, from its dark side to its light one
NEAR = {"noon": 50.0, "dusk": 50.0, "night": 38.0}  # how far a pixel may be from an object's paint, in levels
LEVELS = 64  # of each channel in the table of colours
LEAST_COAT = 40  # pixels in its coat that make the subject seen
SIDE = 16  # silhouettes are compared at this size
PLACE = {"house": 40.0, "tree": 31.0, "tower": 31.0, "balloon": 17.0}  # usual height of a coloured part's centre
SHAPE = {"house": (27, 15), "tree": (25, 24), "tower": (17, 39), "balloon": (20, 21)}  # and its width and height


@dataclass(frozen=True)
class Detection:
    """An object seen in a frame.

    Attributes:
        colour: its paint.
        kind: its shape; None where the shape is none of the world's.
        x: its centre in the view, in pixels.
    """

    colour: str
    kind: str | None
    x: float


def ground_and_time(video: np.ndarray) -> tuple[str, str]:
    """(ground, time of day) of a stretch of video [frames, HEIGHT, VIEW, 3] uint8.

    The time is the one whose sky is nearest to the colour at the top, the ground the one whose soil under that light
    is nearest to the colour at the bottom.
    """
    top = np.median(video[:, :6].reshape(-1, 3), 0)
    bottom = np.median(video[:, -8:].reshape(-1, 3), 0)
    time = min(TIMES, key=lambda name: np.abs(np.asarray(SKY[name][0]) - top).sum())

    def difference(ground: str) -> float:
        lit = np.asarray(SOIL[ground]) * LIGHT[time] * 0.84
        return np.abs(lit - bottom).sum()

    return min(GROUNDS, key=difference), time


def detect_objects(frame: np.ndarray, time: str) -> list[Detection]:
    """Objects that lie wholly in a frame [HEIGHT, VIEW, 3] under the light of `time`.

    An object is a stretch of columns in one paint, 8 to 36 pixels wide and at least 8 high, that touches
    neither side; its kind is the one whose silhouette, size and height in the picture fit best.
    """
    found = []
    paint_of_pixel = _look_up(_paints(time), frame)
    for number, colour in enumerate(COLOURS):
        mask = paint_of_pixel == number
        for left, right in runs(mask.sum(0) >= 3, bridge=2):
            part = mask[:, left:right]
            rows = np.flatnonzero(part.sum(1) >= 3)
            cut_off = left == 0 or right == VIEW
            if cut_off or not 8 <= right - left <= 36 or len(rows) < 8:
                continue
            kind = _kind(part[rows[0] : rows[-1] + 1], rows[0])
            found.append(Detection(colour, kind, (left + right - 1) / 2))
    return found


def detect_subjects(video: np.ndarray, time: str) -> list[str | None]:
    """The subject that each frame of [frames, HEIGHT, VIEW, 3] shows: whose coat has most pixels in its lane.

    None where neither has LEAST_COAT of them.
    """
    coats = _look_up(_coats(time), video[:, LANE:])  # [frames, rows, VIEW]
    counts = np.stack([(coats == number).sum((1, 2)) for number in range(len(SUBJECTS))], 1)
    found = []
    for row in counts:
        found.append(SUBJECTS[row.argmax()] if row.max() >= LEAST_COAT else None)
    return found


def locate(frame: np.ndarray, panorama: np.ndarray) -> int:
    """The camera's position in a known scene [HEIGHT, WIDTH, 3]: where the frame differs least from it, in pixels."""
    views = np.lib.stride_tricks.sliding_window_view(panorama[:LANE].astype(np.float32), VIEW, axis=1)
    differences = np.abs(views - frame[:LANE].transpose(0, 2, 1)[:, None])  # [LANE, places, 3, VIEW]
    return int(differences.mean((0, 2, 3)).argmin())


def runs(flags: np.ndarray, bridge: int) -> list[tuple[int, int]]:
    """Stretches [first, last + 1) of set flags, gaps of up to `bridge` ignored."""
    found: list[tuple[int, int]] = []
    for i in np.flatnonzero(flags):
        if found and i - found[-1][1] <= bridge:
            found[-1] = (found[-1][0], int(i) + 1)
        else:
            found.append((int(i), int(i) + 1))
    return found


# Tables of colours: for every colour, whose paint it is


@cache
def _paints(time: str) -> np.ndarray:
    """Table of the objects' paints under this light, in all their shades, beside all that is no object."""
    top, horizon = np.asarray(SKY[time][0]), np.asarray(SKY[time][1])
    sky = top + (horizon - top) * np.linspace(0, 1, 5)[:, None]
    coats = np.asarray(list(COAT.values())) * LIGHT[time]
    legs = np.asarray(list(LEGS.values())) * LIGHT[time]
    others = np.concatenate([sky, _things(time), coats, legs, (coats + legs) / 2])
    paints = []
    for name in COLOURS:
        paints.append(np.asarray(PAINT[name]) * LIGHT[time] * SHADES)
    return _table(paints, others, time)


@cache
def _coats(time: str) -> np.ndarray:
    """Table of the subjects' coats, beside what else their lane shows."""
    coats = []
    for name in SUBJECTS:
        coats.append(np.asarray(COAT[name])[None] * LIGHT[time])
    return _table(coats, _things(time), time)


def _table(kinds: Sequence[np.ndarray], others: np.ndarray, time: str) -> np.ndarray:
    """For every colour, [LEVELS, LEVELS, LEVELS]: the index of the kind that it is nearest to.

    It is len(kinds) for colours that are far from all of them, or nearer to one of `others` [n, 3].
    """
    distance = np.stack([_distance(colours) for colours in kinds])
    neither = distance.min(0) > np.minimum(NEAR[time], _distance(others))
    return np.where(neither, len(kinds), distance.argmin(0)).astype(np.uint8)


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


# Outlines


def _kind(part: np.ndarray, top: int) -> str | None:
    """The kind whose silhouette, size and place fit a coloured part best; None where none fits.

    Args:
        part: [height, width] which pixels are coloured.
        top: the row of the frame in which the part begins.
    """
    height, width = part.shape
    small = _resize(part)

    def misfit(kind: str) -> float:
        usual_width, usual_height = SHAPE[kind]
        outline = np.mean(small != _silhouette(kind))
        size = abs(np.log(width / usual_width)) + abs(np.log(height / usual_height))
        place = abs(top + height / 2 - PLACE[kind])
        return float(outline + 0.5 * size + place / 40)

    best = min(KINDS, key=misfit)
    return best if misfit(best) < 0.75 else None


@cache
def _silhouette(kind: str) -> np.ndarray:
    """The coloured part of a kind, as the world paints it, [SIDE, SIDE]."""
    canvas = Canvas()
    magenta = np.array((255.0, 0.0, 255.0))
    SHAPES[kind](canvas, Sprite(kind, "red", WIDTH / 2, HEIGHT - 8, 1.0), magenta, np.zeros(3), False)
    mask = np.abs(canvas.pixels().astype(np.float32)[..., [0, 2]]).min(-1) > 100
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    return _resize(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _resize(mask: np.ndarray) -> np.ndarray:
    """A mask at [SIDE, SIDE], each pixel the nearest one of it."""
    height, width = mask.shape
    middles = (np.arange(SIDE) + 0.5) / SIDE
    rows = (middles * height).astype(int)
    columns = (middles * width).astype(int)
    return mask[rows[:, None], columns]
