"""Painting: a scene becomes one panorama, [HEIGHT, WIDTH, 3] uint8; filming: a shot of it with the subject in it."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from tinyworld.training import digest
from tinyworld.world import CLIFF, HEIGHT, VIEW, WIDTH, Scene, Shot, Sprite, draw_scene, draw_shot

SAMPLES = 3  # sub-pixels a side, on which shapes are painted hard
LENS = 0.8  # pixels, the deviation of the Gaussian through which they are seen: what a codec of 1.5 M can hold

SKY = {  # colours at the top and at the horizon
    "noon": ((74, 144, 226), (196, 224, 246)),
    "dusk": ((72, 66, 128), (246, 176, 132)),
    "night": ((8, 10, 36), (44, 54, 104)),
}
LIGHT = {"noon": (1.0, 1.0, 1.0), "dusk": (0.92, 0.78, 0.76), "night": (0.58, 0.62, 0.82)}
SOIL = {"meadow": (98, 172, 74), "desert": (224, 184, 116), "snowfield": (222, 230, 240)}
PAINT = {"red": (218, 44, 44), "yellow": (250, 208, 34), "blue": (44, 82, 226), "purple": (184, 56, 196)}
ROCK, WOOD, DARK, GLOW = (112, 100, 96), (104, 70, 44), (52, 46, 58), (255, 226, 150)
COAT = {"fox": (228, 112, 34), "wolf": (58, 64, 98)}
LEGS = {"fox": (74, 42, 34), "wolf": (40, 44, 70)}
TIP = {"fox": (246, 240, 230), "wolf": (40, 44, 70)}
LANE = 50  # the row from which on the subject is painted, in front of everything
GAITS, STRIDE = 8, 16  # positions of its legs, and the pixels of the way over which they repeat


class Canvas:
    """A picture under work: `y`, `x` are pixel coordinates of every sub-pixel."""

    def __init__(self, height: int = HEIGHT, width: int = WIDTH):
        self.y, self.x = np.mgrid[0 : height * SAMPLES, 0 : width * SAMPLES].astype(np.float32) / SAMPLES
        self.rgb = np.zeros((*self.x.shape, 3), np.float32)

    def near(self, x: float, reach: float) -> "Canvas":
        """The part of the canvas within `reach` pixels of a column: small shapes cost less there."""
        part = object.__new__(Canvas)
        columns = slice(max(int((x - reach) * SAMPLES), 0), max(int((x + reach) * SAMPLES), 0))
        part.y, part.x, part.rgb = self.y[:, columns], self.x[:, columns], self.rgb[:, columns]
        return part

    def fill(self, mask: np.ndarray, colour, alpha: float = 1.0) -> None:
        """Paint where `mask` holds; `colour` is one triple or an array like the picture."""
        colour = np.broadcast_to(np.asarray(colour, np.float32), self.rgb.shape)
        self.rgb[mask] += alpha * (colour[mask] - self.rgb[mask])

    def pixels(self) -> np.ndarray:
        return seen(self.rgb).clip(0, 255).round().astype(np.uint8)


def seen(x: np.ndarray) -> np.ndarray:
    """Sub-pixels [H * SAMPLES, W * SAMPLES, C] to pixels [H, W, C], through the lens."""
    rows, columns = (_lens(size // SAMPLES) for size in x.shape[:2])
    return np.einsum("yh,hwc,xw->yxc", rows, x, columns, optimize=True)


@cache
def _lens(size: int) -> np.ndarray:
    """[size, size * SAMPLES] what each sub-pixel along a side adds to each pixel."""
    away = np.arange(size)[:, None] + 0.5 - (np.arange(size * SAMPLES) + 0.5) / SAMPLES
    weight = np.exp(-0.5 * np.square(away / LENS)).astype(np.float32)
    return weight / weight.sum(1, keepdims=True)


def paint(scene: Scene) -> np.ndarray:
    """The whole scene at once: the camera only ever moves over this picture."""
    rng = np.random.default_rng([scene.seed, 3])
    canvas, light = Canvas(), np.asarray(LIGHT[scene.time], np.float32)
    _sky(canvas, scene, rng)
    _hills(canvas, scene, rng, light)
    _ground(canvas, scene, rng, light)
    _cliffs(canvas, rng, light)
    for sprite in scene.sprites:
        if sprite.kind != "balloon":
            shadow = ellipse(canvas, sprite.x + 2, sprite.foot, 13 * sprite.size, 2.2)
            canvas.fill(shadow, (0, 0, 0), 0.28)
        SHAPES[sprite.kind](
            canvas.near(sprite.x, 24), sprite, np.asarray(PAINT[sprite.colour]) * light, light, scene.time == "night"
        )
    return canvas.pixels()


@dataclass(frozen=True)
class Gallery:
    """Painted scenes, [scenes, HEIGHT, WIDTH, 3] uint8: those of the seeds `first`, `first` + 1, ..."""

    first: int
    panoramas: np.ndarray

    def __len__(self) -> int:
        return len(self.panoramas)

    def about(self) -> dict[str, str]:
        """What a training state that depends on these scenes and on how they are filmed keeps of them."""
        return {"world.scenes": digest([self.panoramas]), "world.videos": digest([self.film(0, draw_shot(0), 65)])}

    def film(self, index: int, shot: Shot, frames: int) -> np.ndarray:
        """[frames, HEIGHT, VIEW, 3] uint8 of the scene with this index."""
        return film(self.panoramas[index], draw_scene(self.first + index), shot, frames)


def film(panorama: np.ndarray, scene: Scene, shot: Shot, frames: int) -> np.ndarray:
    """The first frames of a shot: the view cut out of the scene's panorama, the subject in front of it.

    Args:
        panorama: the scene, painted: [HEIGHT, WIDTH, 3] uint8.

    Returns:
        [frames, HEIGHT, VIEW, 3] uint8.
    """
    camera, heading, subject = shot.camera(frames), shot.heading(frames), shot.subject(frames)
    columns = camera[:, None] + np.arange(VIEW)
    video = np.ascontiguousarray(panorama[:, columns].transpose(1, 0, 2, 3))
    gait = np.floor((camera + subject) * heading / STRIDE * GAITS).astype(int) % GAITS
    for frame, x, facing, legs in zip(video, subject, heading, gait, strict=True):
        left, part = divmod(round(x * SAMPLES), SAMPLES)
        coat, cover = _subject(scene.subject, scene.time, int(facing), int(legs), part)
        left -= cover.shape[1] // 2
        behind = frame[LANE:, left : left + cover.shape[1]]
        behind[:] = (behind * (1 - cover) + coat).round()
    return video


@cache
def _subject(kind: str, time: str, heading: int, gait: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """(colour times cover [HEIGHT - LANE, 32, 3], cover [.., 1]) of the animal, `part` sub-pixels to the right."""
    canvas, light = Canvas(HEIGHT - LANE, 32), np.asarray(LIGHT[time], np.float32)
    canvas.x = (canvas.x - 16 - part / SAMPLES) * heading  # it looks along x, and its middle is 0
    canvas.rgb[:] = -1  # nothing there
    coat, legs, tip = (np.asarray(colours[kind]) * light for colours in (COAT, LEGS, TIP))
    for number, x in enumerate((-5.5, -3.5, 4.0, 6.0)):
        swing = 2.2 * np.sin(2 * np.pi * (gait / GAITS + number * 0.3))
        hip = (12 - canvas.y).clip(0, 5) / 5
        canvas.fill((np.abs(canvas.x - x - swing * (1 - hip)) <= 1.0) & (canvas.y >= 6) & (canvas.y <= 12), legs)
    canvas.fill(ellipse(canvas, -10.5, 5.0, 4.5, 1.8), coat)
    canvas.fill(ellipse(canvas, -13, 4.6, 2.2, 1.6), tip)
    canvas.fill(ellipse(canvas, 0, 5.8, 7.8, 3.0), coat)
    canvas.fill(ellipse(canvas, 8.5, 4.2, 3.2, 2.6), coat)
    canvas.fill(ellipse(canvas, 11.5, 5.0, 2.2, 1.2), coat)
    canvas.fill(triangle(canvas, 7.5, 2.6, 1.5, 2.6), legs)
    cover = canvas.rgb[..., :1] >= 0
    return seen(canvas.rgb * cover), seen(cover.astype(np.float32))


def _sky(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    top, low = (np.asarray(colour, np.float32) for colour in SKY[scene.time])
    blend = (canvas.y / scene.horizon).clip(0, 1)[..., None] ** 1.3
    canvas.rgb[:] = top + (low - top) * blend
    x, y = rng.uniform(CLIFF + 10, WIDTH - CLIFF - 10), rng.uniform(8, 16)
    if scene.time == "night":
        for _ in range(20):
            x_star, y_star = rng.uniform(0, WIDTH), rng.uniform(2, 28)
            part = canvas.near(x_star, 3)
            part.fill(ellipse(part, x_star, y_star, 1.1, 1.1), (196, 202, 236))
        canvas.fill(ellipse(canvas, x, y, 5, 5), (236, 236, 220))
        canvas.fill(ellipse(canvas, x + 2.4, y - 1.2, 4.4, 4.4), top + (low - top) * 0.15)
        return
    y = scene.horizon - 10 if scene.time == "dusk" else y
    disc, halo = ((255, 214, 150), (255, 190, 130)) if scene.time == "dusk" else ((255, 252, 226), (240, 244, 236))
    for radius in (12, 9):
        canvas.fill(ellipse(canvas, x, y, radius, radius), halo, 0.3)
    canvas.fill(ellipse(canvas, x, y, 6, 6), disc)
    for _ in range(5):
        x, y = rng.uniform(0, WIDTH), rng.uniform(4, 22)
        part = canvas.near(x, 22)
        for _ in range(3):
            puff = ellipse(
                part, x + rng.uniform(-9, 9), y + rng.uniform(-2, 2), rng.uniform(6, 11), rng.uniform(2, 3.5)
            )
            part.fill(puff, (250, 236, 232), 0.3)


def _hills(canvas: Canvas, scene: Scene, rng: np.random.Generator, light: np.ndarray) -> None:
    haze = np.asarray(SKY[scene.time][1], np.float32)
    soil = np.asarray(SOIL[scene.ground], np.float32) * light
    for height, near in ((13, 0.35), (7, 0.65)):
        ridge = np.zeros_like(canvas.x[0])
        for wave in (1.5, 3, 5, 8):
            length = WIDTH / (wave * rng.uniform(0.8, 1.2))
            ridge += np.sin(canvas.x[0] / length * 2 * np.pi + rng.uniform(0, 6.3)) * rng.uniform(0.5, 1) / wave**0.6
        top = scene.horizon - height * (0.55 + 0.4 * ridge)
        canvas.fill(canvas.y >= np.minimum(top, scene.horizon), haze * (1 - near) + soil * 0.72 * near)


def _ground(canvas: Canvas, scene: Scene, rng: np.random.Generator, light: np.ndarray) -> None:
    depth = ((canvas.y - scene.horizon) / (HEIGHT - scene.horizon)).clip(0, 1)[..., None]
    soil = np.asarray(SOIL[scene.ground], np.float32) * light
    below = canvas.y >= scene.horizon
    canvas.fill(below, soil * (1.02 - 0.24 * depth))
    for _ in range(16):
        x, y = rng.uniform(0, WIDTH), rng.uniform(scene.horizon + 3, HEIGHT)
        part = canvas.near(x, 18)
        part.fill(ellipse(part, x, y, rng.uniform(8, 17), rng.uniform(1.2, 2.6)), soil * rng.choice([0.7, 1.12]), 0.4)
    details = {"meadow": _bush, "desert": _cactus, "snowfield": _fir}
    for x in rng.uniform(CLIFF + 4, WIDTH - CLIFF - 4, 6):
        details[scene.ground](canvas.near(x, 12), x, scene.horizon + rng.uniform(1, 4), rng.uniform(0.7, 1.2), light)


def _bush(canvas: Canvas, x: float, foot: float, size: float, light: np.ndarray) -> None:
    for dx, r in ((-3, 3), (0, 4), (3, 3)):
        canvas.fill(ellipse(canvas, x + dx * size, foot - 1.5, r * size, r * size), np.array((46, 112, 58)) * light)


def _cactus(canvas: Canvas, x: float, foot: float, size: float, light: np.ndarray) -> None:
    green = np.array((70, 120, 70)) * light
    for dx, low, high in ((0, 0, 10), (-3, 3, 7), (3, 4, 8)):
        canvas.fill(box(canvas, x + dx * size, foot - low * size, 1.1, (high - low) * size), green)
    canvas.fill(box(canvas, x, foot - 3.5 * size, 3.5 * size, 1.5), green)


def _fir(canvas: Canvas, x: float, foot: float, size: float, light: np.ndarray) -> None:
    for lift, r in ((0, 4), (3, 3)):
        canvas.fill(triangle(canvas, x, foot - lift * size, r * size, 6 * size), np.array((56, 92, 92)) * light)


def _cliffs(canvas: Canvas, rng: np.random.Generator, light: np.ndarray) -> None:
    rows = canvas.y[:, 0]
    for side in (0, 1):
        distance = canvas.x if side == 0 else WIDTH - canvas.x
        edge = CLIFF - 8 + 8 * rows / HEIGHT
        for wave in (1.3, 3.1):
            edge = edge + 1.6 * np.sin(rows / HEIGHT * 2 * np.pi * wave + rng.uniform(0, 6.3))
        rock = distance < edge[:, None]
        shade = 0.72 + 0.36 * (distance / CLIFF)[..., None].clip(0, 1)
        canvas.fill(rock, np.asarray(ROCK) * light * shade)
        for y in np.arange(rng.uniform(3, 9), HEIGHT, 12):
            crack = rock & (np.abs(canvas.y - y - 0.18 * distance) < 1.4)
            canvas.fill(crack, np.asarray(ROCK) * light * 0.55, 0.4)


def _house(canvas: Canvas, sprite: Sprite, paint: np.ndarray, light: np.ndarray, night: bool) -> None:
    x, foot, s = sprite.x, sprite.foot, sprite.size
    canvas.fill(box(canvas, x, foot, 12 * s, 15 * s), shaded(canvas, x, 12 * s, paint))
    canvas.fill(triangle(canvas, x, foot - 15 * s, 15 * s, 10 * s), np.asarray(DARK) * light)
    canvas.fill(box(canvas, x - 5 * s, foot, 2.2 * s, 8 * s), np.asarray(WOOD) * light)
    canvas.fill(
        box(canvas, x + 4.5 * s, foot - 5 * s, 2.8 * s, 5 * s), GLOW if night else np.array((206, 232, 244)) * light
    )


def _tree(canvas: Canvas, sprite: Sprite, paint: np.ndarray, light: np.ndarray, night: bool) -> None:
    x, foot, s = sprite.x, sprite.foot, sprite.size
    canvas.fill(box(canvas, x, foot, 1.9 * s, 14 * s), np.asarray(WOOD) * light)
    for dx, dy, r in ((-5.5, 15, 6.5), (5.5, 15, 6.5), (0, 21, 8)):
        canvas.fill(ellipse(canvas, x + dx * s, foot - dy * s, r * s, r * s), shaded(canvas, x, 12 * s, paint))


def _tower(canvas: Canvas, sprite: Sprite, paint: np.ndarray, light: np.ndarray, night: bool) -> None:
    x, foot, s = sprite.x, sprite.foot, sprite.size
    body = shaded(canvas, x, 8 * s, paint)
    canvas.fill(box(canvas, x, foot, 6.5 * s, 34 * s), body)
    canvas.fill(box(canvas, x, foot - 30 * s, 8.5 * s, 4 * s), body)
    for dx in (-6.3, 0, 6.3):
        canvas.fill(box(canvas, x + dx * s, foot - 34 * s, 2.1 * s, 4 * s), body)
    canvas.fill(box(canvas, x, foot, 2.6 * s, 7 * s), np.asarray(DARK) * light)
    for lift in (13, 22):
        canvas.fill(box(canvas, x, foot - lift * s, 1.5 * s, 4 * s), GLOW if night else np.asarray(DARK) * light)


def _balloon(canvas: Canvas, sprite: Sprite, paint: np.ndarray, light: np.ndarray, night: bool) -> None:
    x, foot, s = sprite.x, sprite.foot, sprite.size
    y = foot - 18 * s
    for side in (-1, 1):
        rope = np.abs(canvas.x - x - side * (2 + (foot - 3 - canvas.y) * 0.35)) < 0.5
        canvas.fill(rope & (canvas.y > y + 5) & (canvas.y < foot - 3), np.asarray(WOOD) * light)
    canvas.fill(ellipse(canvas, x, y, 10 * s, 10 * s), shaded(canvas, x, 10 * s, paint))
    canvas.fill(triangle(canvas, x, y + 4.5 * s, 9 * s, -9 * s), shaded(canvas, x, 10 * s, paint))
    canvas.fill(ellipse(canvas, x, y, 10 * s, 10 * s) & (np.abs(canvas.y - y) < 1.6), np.array((240, 232, 224)) * light)
    canvas.fill(box(canvas, x, foot, 2.6 * s, 4 * s), np.asarray(WOOD) * light * 1.2)


SHAPES = {"house": _house, "tree": _tree, "tower": _tower, "balloon": _balloon}


def shaded(canvas: Canvas, x: float, half: float, colour: np.ndarray) -> np.ndarray:
    """A colour that darkens from left to right over an object `2 * half` wide."""
    side = ((canvas.x - x) / half).clip(-1, 1)[..., None]
    return (np.asarray(colour, np.float32) * (1 - 0.16 * side)).clip(0, 255)


def ellipse(canvas: Canvas, x: float, y: float, a: float, b: float) -> np.ndarray:
    return ((canvas.x - x) / a) ** 2 + ((canvas.y - y) / b) ** 2 <= 1


def box(canvas: Canvas, x: float, foot: float, half: float, height: float) -> np.ndarray:
    return (np.abs(canvas.x - x) <= half) & (canvas.y <= foot) & (canvas.y >= foot - height)


def triangle(canvas: Canvas, x: float, base: float, half: float, height: float) -> np.ndarray:
    """Base line at y = `base`; a negative height makes it point down."""
    rise = (base - canvas.y) / height
    return (rise >= 0) & (rise <= 1) & (np.abs(canvas.x - x) <= half * (1 - rise))
