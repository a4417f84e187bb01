"""Painting: a scene becomes one panorama."""

import numpy as np

from tinyworld.world.canvas import Canvas, box, ellipse, shaded, triangle
from tinyworld.world.palette import DARK, GLOW, LIGHT, PAINT, ROCK, SKY, SOIL, WOOD
from tinyworld.world.scene import CLIFF, HEIGHT, WIDTH, Scene, Sprite


def paint(scene: Scene) -> np.ndarray:
    """The whole scene at once, [HEIGHT, WIDTH, 3] uint8: the camera only ever moves over this picture."""
    rng = np.random.default_rng([scene.seed, 3])
    canvas = Canvas()
    light = np.asarray(LIGHT[scene.time], np.float32)
    _sky(canvas, scene, rng)
    _hills(canvas, scene, rng, light)
    _ground(canvas, scene, rng, light)
    _cliffs(canvas, rng, light)
    for sprite in scene.sprites:
        if sprite.kind != "balloon":
            shadow = ellipse(canvas, sprite.x + 2, sprite.foot, 13 * sprite.size, 2.2)
            canvas.fill(shadow, (0, 0, 0), 0.28)
        around = canvas.near(sprite.x, 24)
        colour = np.asarray(PAINT[sprite.colour]) * light
        SHAPES[sprite.kind](around, sprite, colour, light, scene.time == "night")
    return canvas.pixels()


def _sky(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    top = np.asarray(SKY[scene.time][0], np.float32)
    horizon = np.asarray(SKY[scene.time][1], np.float32)
    blend = (canvas.y / scene.horizon).clip(0, 1)[..., None] ** 1.3
    canvas.rgb[:] = top + (horizon - top) * blend
    x = rng.uniform(CLIFF + 10, WIDTH - CLIFF - 10)  # of the sun or the moon
    y = rng.uniform(8, 16)
    if scene.time == "night":
        _stars(canvas, rng)
        canvas.fill(ellipse(canvas, x, y, 5, 5), (236, 236, 220))
        canvas.fill(ellipse(canvas, x + 2.4, y - 1.2, 4.4, 4.4), top + (horizon - top) * 0.15)
        return
    disc, halo = (255, 252, 226), (240, 244, 236)
    if scene.time == "dusk":
        y = scene.horizon - 10
        disc, halo = (255, 214, 150), (255, 190, 130)
    for radius in (12, 9):
        canvas.fill(ellipse(canvas, x, y, radius, radius), halo, 0.3)
    canvas.fill(ellipse(canvas, x, y, 6, 6), disc)
    _clouds(canvas, rng)


def _stars(canvas: Canvas, rng: np.random.Generator) -> None:
    for _ in range(20):
        x = rng.uniform(0, WIDTH)
        y = rng.uniform(2, 28)
        part = canvas.near(x, 3)
        part.fill(ellipse(part, x, y, 1.1, 1.1), (196, 202, 236))


def _clouds(canvas: Canvas, rng: np.random.Generator) -> None:
    for _ in range(5):
        x = rng.uniform(0, WIDTH)
        y = rng.uniform(4, 22)
        part = canvas.near(x, 22)
        for _ in range(3):
            puff_x = x + rng.uniform(-9, 9)
            puff_y = y + rng.uniform(-2, 2)
            puff = ellipse(part, puff_x, puff_y, rng.uniform(6, 11), rng.uniform(2, 3.5))
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
        x = rng.uniform(0, WIDTH)
        y = rng.uniform(scene.horizon + 3, HEIGHT)
        part = canvas.near(x, 18)
        patch = ellipse(part, x, y, rng.uniform(8, 17), rng.uniform(1.2, 2.6))
        part.fill(patch, soil * rng.choice([0.7, 1.12]), 0.4)
    details = {"meadow": _bush, "desert": _cactus, "snowfield": _fir}
    for x in rng.uniform(CLIFF + 4, WIDTH - CLIFF - 4, 6):
        foot = scene.horizon + rng.uniform(1, 4)
        details[scene.ground](canvas.near(x, 12), x, foot, rng.uniform(0.7, 1.2), light)


def _bush(canvas: Canvas, x: float, foot: float, size: float, light: np.ndarray) -> None:
    green = np.array((46, 112, 58)) * light
    for dx, r in ((-3, 3), (0, 4), (3, 3)):
        canvas.fill(ellipse(canvas, x + dx * size, foot - 1.5, r * size, r * size), green)


def _cactus(canvas: Canvas, x: float, foot: float, size: float, light: np.ndarray) -> None:
    green = np.array((70, 120, 70)) * light
    for dx, low, high in ((0, 0, 10), (-3, 3, 7), (3, 4, 8)):
        canvas.fill(box(canvas, x + dx * size, foot - low * size, 1.1, (high - low) * size), green)
    canvas.fill(box(canvas, x, foot - 3.5 * size, 3.5 * size, 1.5), green)


def _fir(canvas: Canvas, x: float, foot: float, size: float, light: np.ndarray) -> None:
    green = np.array((56, 92, 92)) * light
    for lift, r in ((0, 4), (3, 3)):
        canvas.fill(triangle(canvas, x, foot - lift * size, r * size, 6 * size), green)


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
    window = GLOW if night else np.array((206, 232, 244)) * light
    canvas.fill(box(canvas, x + 4.5 * s, foot - 5 * s, 2.8 * s, 5 * s), window)


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
    window = GLOW if night else np.asarray(DARK) * light
    for lift in (13, 22):
        canvas.fill(box(canvas, x, foot - lift * s, 1.5 * s, 4 * s), window)


def _balloon(canvas: Canvas, sprite: Sprite, paint: np.ndarray, light: np.ndarray, night: bool) -> None:
    x, foot, s = sprite.x, sprite.foot, sprite.size
    y = foot - 18 * s
    for side in (-1, 1):
        rope = np.abs(canvas.x - x - side * (2 + (foot - 3 - canvas.y) * 0.35)) < 0.5
        canvas.fill(rope & (canvas.y > y + 5) & (canvas.y < foot - 3), np.asarray(WOOD) * light)
    hull = ellipse(canvas, x, y, 10 * s, 10 * s)
    canvas.fill(hull, shaded(canvas, x, 10 * s, paint))
    canvas.fill(triangle(canvas, x, y + 4.5 * s, 9 * s, -9 * s), shaded(canvas, x, 10 * s, paint))
    canvas.fill(hull & (np.abs(canvas.y - y) < 1.6), np.array((240, 232, 224)) * light)
    canvas.fill(box(canvas, x, foot, 2.6 * s, 4 * s), np.asarray(WOOD) * light * 1.2)


SHAPES = {"house": _house, "tree": _tree, "tower": _tower, "balloon": _balloon}
