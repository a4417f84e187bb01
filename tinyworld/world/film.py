"""Filming: a shot of a painted scene with the subject in front of it, and what is true about it."""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from tinyworld.world.canvas import SAMPLES, Canvas, ellipse, seen, triangle
from tinyworld.world.captions import Meaning, caption
from tinyworld.world.palette import COAT, LEGS, LIGHT, TIP
from tinyworld.world.render import paint
from tinyworld.world.scene import HEIGHT, LANE, VIEW, Scene, Shot, draw_scene, draw_shot, meaning

HELD_OUT = 1_000_000  # the first seed of the scenes that no training sees
GAITS = 8  # positions of the subject's legs
STRIDE = 16  # pixels of the way over which they repeat


@dataclass(frozen=True)
class Clip:
    """A scene, filmed over so many pixel frames, and what is true about it; painted when its video is asked for."""

    scene: Scene
    shot: Shot
    frames: int

    @cached_property
    def meaning(self) -> Meaning:
        return meaning(self.scene, self.shot)

    @cached_property
    def caption(self) -> str:
        return caption(self.meaning)

    @cached_property
    def camera(self) -> np.ndarray:
        """[frames] pixels, left edge of the view."""
        return self.shot.camera(self.frames)

    @cached_property
    def video(self) -> np.ndarray:
        """[frames, HEIGHT, VIEW, 3] uint8."""
        return film(paint(self.scene), self.scene, self.shot, self.frames)


def held_out(index: int, frames: int = 1) -> Clip:
    """The held-out clip with this number, of so many pixel frames."""
    return Clip(draw_scene(HELD_OUT + index), draw_shot(HELD_OUT + index), frames)


def film(panorama: np.ndarray, scene: Scene, shot: Shot, frames: int) -> np.ndarray:
    """The first frames of a shot: the view cut out of the scene's panorama, the subject in front of it.

    Args:
        panorama: the scene, painted: [HEIGHT, WIDTH, 3] uint8.

    Returns:
        [frames, HEIGHT, VIEW, 3] uint8.
    """
    camera = shot.camera(frames)
    heading = shot.heading(frames)
    subject = shot.subject(frames)
    columns = camera[:, None] + np.arange(VIEW)
    video = np.ascontiguousarray(panorama[:, columns].transpose(1, 0, 2, 3))
    gait = np.floor((camera + subject) * heading / STRIDE * GAITS).astype(int) % GAITS
    for frame, x, facing, legs in zip(video, subject, heading, gait, strict=True):
        left, part = divmod(round(x * SAMPLES), SAMPLES)
        coat, cover = _subject(scene.subject, scene.time, int(facing), int(legs), part)
        width = cover.shape[1]
        left -= width // 2
        behind = frame[LANE:, left : left + width]
        behind[:] = (behind * (1 - cover) + coat).round()
    return video


@cache
def _subject(kind: str, time: str, heading: int, gait: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """The animal, `part` sub-pixels to the right.

    Returns:
        colour times cover [HEIGHT - LANE, 32, 3], cover [HEIGHT - LANE, 32, 1].
    """
    canvas = Canvas(HEIGHT - LANE, 32)
    light = np.asarray(LIGHT[time], np.float32)
    canvas.x = (canvas.x - 16 - part / SAMPLES) * heading  # it looks along x, and its middle is 0
    canvas.rgb[:] = -1  # nothing there
    coat = np.asarray(COAT[kind]) * light
    legs = np.asarray(LEGS[kind]) * light
    tip = np.asarray(TIP[kind]) * light
    for number, x in enumerate((-5.5, -3.5, 4.0, 6.0)):
        swing = 2.2 * np.sin(2 * np.pi * (gait / GAITS + number * 0.3))
        hip = (12 - canvas.y).clip(0, 5) / 5
        leg = (np.abs(canvas.x - x - swing * (1 - hip)) <= 1.0) & (canvas.y >= 6) & (canvas.y <= 12)
        canvas.fill(leg, legs)
    canvas.fill(ellipse(canvas, -10.5, 5.0, 4.5, 1.8), coat)
    canvas.fill(ellipse(canvas, -13, 4.6, 2.2, 1.6), tip)
    canvas.fill(ellipse(canvas, 0, 5.8, 7.8, 3.0), coat)
    canvas.fill(ellipse(canvas, 8.5, 4.2, 3.2, 2.6), coat)
    canvas.fill(ellipse(canvas, 11.5, 5.0, 2.2, 1.2), coat)
    canvas.fill(triangle(canvas, 7.5, 2.6, 1.5, 2.6), legs)
    cover = canvas.rgb[..., :1] >= 0
    return seen(canvas.rgb * cover), seen(cover.astype(np.float32))
