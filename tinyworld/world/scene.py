"""The world: scenes drawn from a seed, the camera's and the subject's ways, and the truth of every frame."""

import itertools
from dataclasses import dataclass

import numpy as np

from tinyworld.world.captions import COLOURS, DIRECTIONS, GROUNDS, KINDS, SUBJECTS, TIMES, Meaning

HEIGHT = 64  # pixels: the view is HEIGHT x VIEW, the scene HEIGHT x WIDTH
VIEW = 96
WIDTH = 288
TRAVEL = WIDTH - VIEW  # pixels of the camera's way from one end to the other
CLIFF = 22  # pixels of rock that close the scene at each end: where the camera turns
LANE = 50  # the row from which on the subject runs, in front of everything
FPS = 16
ONE_LATENT = 4  # pixel frames
PACES = {2: (8, 15), 1: (4, 9)}  # of the camera, pixels a frame -> for how many latent frames it lasts, end excluded
FIRST_PASS = TRAVEL // 96 * 16 + 2  # latent frames in which the far end is reached: 8 at either pace are 96 pixels
SWAY = 18  # pixels that the subject runs ahead of the middle of the view and falls behind it


def pixel_frames(latent_frames: int) -> int:
    """Pixel frames of a video of so many latent frames: the first stands for one, every other for ONE_LATENT."""
    return ONE_LATENT * (latent_frames - 1) + 1


@dataclass(frozen=True)
class Sprite:
    """One object of a scene, in pixels: centre x, y of its foot, size 1 +- 0.15 relative to its kind's usual one."""

    kind: str
    colour: str
    x: float
    foot: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Everything that is to be seen; `seed` decides what the caption does not tell (hills, clouds, textures)."""

    seed: int
    ground: str
    time: str
    subject: str
    horizon: float
    sprites: tuple[Sprite, ...]


@dataclass(frozen=True)
class Shot:
    """A camera's way over a scene, and that of the animal it follows: where it starts, and which way it goes.

    `seed` decides the pace, which changes every few seconds, and how the animal keeps up. Every method gives
    one number for each of so many pixel frames; a longer shot starts as a shorter one.
    """

    start: int
    direction: str
    seed: int

    def camera(self, frames: int) -> np.ndarray:
        """[frames] pixels, left edge of the view: back and forth between 0 and TRAVEL."""
        return TRAVEL - np.abs(self._phase(frames) - TRAVEL)

    def heading(self, frames: int) -> np.ndarray:
        """[frames] 1 where the camera goes to the right, -1 where it goes to the left."""
        return np.where(self._phase(frames) < TRAVEL, 1, -1)

    def subject(self, frames: int) -> np.ndarray:
        """[frames] pixels, the middle of the animal in the view: never as fast there as the camera, so it runs on."""
        rng = np.random.default_rng([self.seed, 6])
        period = FPS * rng.uniform(8, 14)
        phase = rng.uniform(0, 2 * np.pi)
        return VIEW / 2 + SWAY * np.sin(2 * np.pi * np.arange(frames) / period + phase)

    def _phase(self, frames: int) -> np.ndarray:
        """[frames] pixels along the way there and back again, 0 to 2 TRAVEL."""
        rng = np.random.default_rng([self.seed, 5])
        quick = rng.random() < 0.65  # the share of the time at the quicker pace
        pace = np.zeros(1, int)
        while len(pace) < frames:
            now = max(PACES) if quick else min(PACES)
            lasts = ONE_LATENT * rng.integers(*PACES[now])
            pace = np.append(pace, np.full(lasts, now))
            quick = not quick
        way = self.start if self.direction == "right" else 2 * TRAVEL - self.start
        return (way + pace[:frames].cumsum()) % (2 * TRAVEL)


def draw_scene(seed: int) -> Scene:
    """The scene that belongs to a seed: 3 or 4 objects, no two alike in both colour and kind."""
    rng = np.random.default_rng([seed, 1])
    horizon = rng.uniform(40, 45)
    count = int(rng.integers(3, 5))
    looks = list(itertools.product(COLOURS, KINDS))
    slot = (WIDTH - 2 * CLIFF) / count
    sprites = []
    for place, pick in enumerate(rng.permutation(len(looks))[:count]):
        colour, kind = looks[pick]
        x = CLIFF + slot * (place + 0.5) + rng.uniform(-0.5, 0.5) * (slot - 36)
        foot = rng.uniform(30, 37) if kind == "balloon" else horizon + rng.uniform(3, 9)
        sprites.append(Sprite(kind, colour, x, foot, rng.uniform(0.88, 1.15)))
    ground = str(rng.choice(GROUNDS))
    time = str(rng.choice(TIMES))
    subject = str(rng.choice(SUBJECTS))
    return Scene(seed, ground, time, subject, horizon, tuple(sprites))


def draw_shot(seed: int) -> Shot:
    """The shot that belongs to a seed: it starts within a few pixels of either end, so no phase is special."""
    rng = np.random.default_rng([seed, 2])
    direction = str(rng.choice(DIRECTIONS))
    offset = int(rng.integers(0, 16))
    return Shot(offset if direction == "right" else TRAVEL - offset, direction, seed)


def meaning(scene: Scene, shot: Shot) -> Meaning:
    """What the caption of this shot says: objects in their order of appearance."""
    order = sorted(scene.sprites, key=lambda sprite: sprite.x, reverse=shot.direction == "left")
    objects = tuple((sprite.colour, sprite.kind) for sprite in order)
    return Meaning(scene.ground, scene.time, scene.subject, shot.direction, objects)


def ahead(scene: Scene, shot: Shot, frames: int) -> np.ndarray:
    """What each of so many pixel frames leads to, [frames, 3] float32.

    The numbers, in COLOURS and in KINDS, of the object whose middle comes into view next, one more than the last of
    them if none does before the camera turns; and how far away that turn is, in views.
    """
    camera = shot.camera(frames)
    heading = shot.heading(frames)
    leading_edge = np.where(heading > 0, camera + VIEW, camera)
    middles = np.array([sprite.x for sprite in scene.sprites])
    distance = (middles - leading_edge[:, None]) * heading[:, None]  # [frames, objects]
    distance = np.where(distance > 0, distance, np.inf)
    looks = []
    for sprite in scene.sprites:
        looks.append((COLOURS.index(sprite.colour), KINDS.index(sprite.kind)))
    looks.append((len(COLOURS), len(KINDS)))  # none before the camera turns
    coming = np.where(np.isfinite(distance.min(1)), distance.argmin(1), len(looks) - 1)
    to_the_turn = np.where(heading > 0, TRAVEL - camera, camera) / VIEW
    return np.concatenate([np.array(looks)[coming], to_the_turn[:, None]], 1).astype(np.float32)


def visible(scene: Scene, camera: float, margin: float = 10.0) -> list[Sprite]:
    """The objects whose centre lies in the view, at least `margin` pixels from its sides."""
    return [sprite for sprite in scene.sprites if camera + margin <= sprite.x <= camera + VIEW - margin]
