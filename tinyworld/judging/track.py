"""Where the camera is in a video, read off its pixels, and whether it moves as the world's camera does.

The camera's truth is not asked: a generated video whose camera drifts is judged by the places that it shows.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from tinyworld.world.scene import LANE, ONE_LATENT, PACES, TRAVEL, VIEW, Shot

SLOW_STEP = ONE_LATENT * min(PACES)  # pixels that the camera goes in one latent frame
QUICK_STEP = ONE_LATENT * max(PACES)
NEAR_END = 3 * QUICK_STEP  # pixels around a scene's end within which the camera may turn
REACH = 14  # pixels, the largest step that is looked for


@dataclass(frozen=True)
class Shift:
    """How a picture moved: by so many pixels, positive where the camera went to the right, and what differs then."""

    pixels: int
    error: float


def find_shift(before: np.ndarray, after: np.ndarray, reach: int = REACH) -> Shift:
    """The camera's motion between two frames [HEIGHT, VIEW, 3] uint8.

    It is the one of at most `reach` pixels at which the frames differ least where they overlap, above the rows in
    which the subject runs; the error is the mean absolute difference there, in levels. Of equal ones the smallest
    motion counts.
    """
    best = None
    for pixels in sorted(range(-reach, reach + 1), key=abs):
        a, b = overlap(before, after, pixels)
        error = float(np.abs(a - b).mean())
        if best is None or error < best.error:
            best = Shift(pixels, error)
    return best


def overlap(before: np.ndarray, after: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The part that two frames share where the camera moved by so many pixels, as float32, above the subject's lane."""
    a = before[:LANE, max(pixels, 0) : VIEW + min(pixels, 0)]
    b = after[:LANE, max(-pixels, 0) : VIEW + min(-pixels, 0)]
    return a.astype(np.float32), b.astype(np.float32)


@dataclass(frozen=True)
class CameraTrack:
    """The camera's way through a video, one position a latent frame.

    Attributes:
        steps: [latents - 1] pixels from each frame to the next, positive to the right.
    """

    steps: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray) -> "CameraTrack":
        """The track of [latents, HEIGHT, VIEW, 3] uint8, one frame a latent frame."""
        steps = []
        for before, after in pairwise(frames):
            steps.append(find_shift(before, after).pixels)
        return cls(np.array(steps, int))

    @cached_property
    def positions(self) -> np.ndarray:
        """[latents] pixels, relative to the first frame: the steps, summed up."""
        return np.concatenate([[0], self.steps.cumsum()]).astype(int)

    def plausible(self, tolerance: int = 1) -> np.ndarray:
        """[latents - 1] whether each step is one of this world's, wherever the camera should be.

        That is a pace between the slowest and the quickest, either way; or a turn. A turn is one slower step: the
        steps before and after it have a full pace and go opposite ways. The first and the last step may be turns,
        too, as one of their neighbours is unknown.
        """
        size = np.abs(self.steps)
        full_pace = (size >= SLOW_STEP - tolerance) & (size <= QUICK_STEP + tolerance)
        direction = np.where(full_pace, np.sign(self.steps), 0)
        before = np.concatenate([[0], direction[:-1]])
        after = np.concatenate([direction[1:], [0]])
        number = np.arange(len(size))
        at_either_end = (number == 0) | (number == len(size) - 1)
        turns = before * after == -1
        turns_unseen = at_either_end & (before + after != 0)
        return full_pace | ((turns | turns_unseen) & (size < QUICK_STEP))

    def as_trained(self, shot: Shot, tolerance: int = 1) -> np.ndarray:
        """[latents - 1] whether each step is one that the shot's camera may take there.

        The camera starts where the shot does, and goes on in the shot's direction until it is within NEAR_END pixels
        of the scene's end, before or beyond it. There it turns. Where it turned is taken for the scene's end from
        then on, so that one inexact turn does not count against all that follows.
        """
        position = shot.start
        direction = 1 if shot.direction == "right" else -1
        allowed = []
        for step in self.steps:
            to_the_end = TRAVEL - position if direction > 0 else position
            in_the_scene = -NEAR_END <= position <= TRAVEL + NEAR_END
            near_the_end = to_the_end <= NEAR_END
            goes_back = step * direction < 0
            if in_the_scene and near_the_end and goes_back:
                position = TRAVEL if direction > 0 else 0
                direction = -direction
                allowed.append(True)
            else:
                goes_on = step * direction > 0
                allowed.append(bool(in_the_scene and (goes_on or near_the_end)))
            position += step
        return self.plausible(tolerance) & np.array(allowed, bool)

    def turns(self) -> int:
        """How often the camera's direction changes. Steps are taken in pairs, and pairs without motion left out."""
        pairs = self.steps[: len(self.steps) // 2 * 2].reshape(-1, 2).sum(1)
        moving = pairs[np.abs(pairs) >= 6]
        return int(np.sum(np.diff(np.sign(moving)) != 0))
