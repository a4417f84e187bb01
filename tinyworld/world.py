"""The world: scenes drawn from a seed, the camera's path, and the truth of every frame."""

from dataclasses import dataclass

import numpy as np

from tinyworld.captions import COLOURS, DIRECTIONS, GROUNDS, KINDS, TIMES, Meaning

HEIGHT, VIEW, WIDTH = 64, 96, 288  # pixels: the view is HEIGHT x VIEW, the scene HEIGHT x WIDTH
CLIFF = 22  # pixels of rock that close the scene at each end: where the camera turns
TRAVEL = WIDTH - VIEW
SPEED = 2  # pixels a frame of the camera
FPS = 16


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
    horizon: float
    sprites: tuple[Sprite, ...]


@dataclass(frozen=True)
class Shot:
    """A camera's way over a scene: where it starts, and which way it goes."""

    start: int
    direction: str

    def camera(self, frames: int) -> np.ndarray:
        """Left edge of the view for each frame, [frames], in pixels: back and forth between 0 and TRAVEL."""
        way = self.start if self.direction == "right" else 2 * TRAVEL - self.start
        phase = (way + SPEED * np.arange(frames)) % (2 * TRAVEL)
        return TRAVEL - np.abs(phase - TRAVEL)


def draw_scene(seed: int) -> Scene:
    """The scene that belongs to a seed: 3 or 4 objects, no two alike in both colour and kind."""
    rng = np.random.default_rng([seed, 1])
    horizon = rng.uniform(40, 45)
    count = int(rng.integers(3, 5))
    looks = [(colour, kind) for colour in COLOURS for kind in KINDS]
    slot = (WIDTH - 2 * CLIFF) / count
    sprites = []
    for i, pick in enumerate(rng.permutation(len(looks))[:count]):
        colour, kind = looks[pick]
        x = CLIFF + slot * (i + 0.5) + rng.uniform(-0.5, 0.5) * (slot - 36)
        foot = rng.uniform(30, 37) if kind == "balloon" else horizon + rng.uniform(3, 9)
        sprites.append(Sprite(kind, colour, x, foot, rng.uniform(0.88, 1.15)))
    return Scene(seed, str(rng.choice(GROUNDS)), str(rng.choice(TIMES)), horizon, tuple(sprites))


def draw_shot(seed: int) -> Shot:
    """The shot that belongs to a seed: it starts within a few pixels of either end, so no phase is special."""
    rng = np.random.default_rng([seed, 2])
    direction, offset = str(rng.choice(DIRECTIONS)), SPEED * int(rng.integers(0, 8))
    return Shot(offset if direction == "right" else TRAVEL - offset, direction)


def meaning(scene: Scene, shot: Shot) -> Meaning:
    """What the caption of this shot says: objects in their order of appearance."""
    order = sorted(scene.sprites, key=lambda sprite: sprite.x, reverse=shot.direction == "left")
    objects = tuple((sprite.colour, sprite.kind) for sprite in order)
    return Meaning(scene.ground, scene.time, shot.direction, objects)


def visible(scene: Scene, camera: float, margin: float = 10.0) -> list[Sprite]:
    """The objects whose centre lies in the view, at least `margin` pixels from its sides."""
    return [sprite for sprite in scene.sprites if camera + margin <= sprite.x <= camera + VIEW - margin]


def film(panorama: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Cut the view out of a panorama for every camera position.

    Args:
        panorama: [HEIGHT, WIDTH, 3] uint8.
        camera: [frames] pixels.

    Returns:
        [frames, HEIGHT, VIEW, 3] uint8.
    """
    columns = camera[:, None] + np.arange(VIEW)
    return panorama[:, columns].transpose(1, 0, 2, 3)
