"""What happens between frames, as a stream: flicker, seams, freezing."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from evaluation.video.features import thumbprint

NEIGHBOURS = 8  # frames on either side that a jump is compared with,
OWN = 1  # less those that belong to it
SEAM_Z = 5.0
SEAM_LEVELS = 2.0
SEAM_RATIOS = np.array([2.5, 2.0])  # of the mean over the picture, of the geometric mean over its cells
CUT_CORRELATION = 0.5
MAX_SEAMS = 100
FROZEN_LEVELS = 1.0  # a frame is frozen when no cell of GRID has changed by this much on average
GRID = (8, 8)
PRINT = (16, 9)


@dataclass(frozen=True)
class Seam:
    """A jump from frame `frame` to `frame + 1` that stands out from its surroundings.

    Attributes:
        z: robust z-score of the frame difference among its neighbours.
        ratio: the frame difference over the largest of its neighbours.
        kind: "seam" (the same picture, jumped) or "cut" (another picture).
    """

    frame: int
    seconds: float
    z: float
    ratio: float
    kind: str


@dataclass(frozen=True)
class Jump:
    """How two consecutive frames differ.

    Attributes:
        frame: number of the first of them.
        differences: [2], levels: mean over the picture, geometric mean over its cells.
        correlation: of their thumbprints.
    """

    frame: int
    differences: np.ndarray
    correlation: float


class SeamDetector:
    """Finds frame differences that stand out from the eight before and the eight after.

    Two differences are followed: the mean over the picture, and the geometric mean over the cells of a grid, which
    is large only for a jump that happens everywhere at once, as no moving object does. One of them, d, must exceed
    the median m of its neighbours by z = (d - m) / max(1.4826 MAD, m / 10, 1/4 level) >= 5 and by 2 levels,
    and the largest of them 2.5-fold (the mean) or 2-fold (the geometric mean). The differences next to it belong to
    the jump and are not neighbours.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.window: deque[Jump] = deque(maxlen=2 * NEIGHBOURS + 1)
        self.found: list[Seam] = []
        self.counts = {"seam": 0, "cut": 0}

    def add(self, jump: Jump) -> None:
        """Follow the next difference."""
        self.window.append(jump)
        if len(self.window) > NEIGHBOURS:
            self._judge(len(self.window) - 1 - NEIGHBOURS)

    def close(self) -> None:
        """Judge the last frames, whose window is one-sided."""
        for middle in range(max(0, len(self.window) - NEIGHBOURS), len(self.window)):
            self._judge(middle)

    def _judge(self, middle: int) -> None:
        neighbours = self._neighbours(middle)
        if len(neighbours) < NEIGHBOURS - OWN:
            return
        jump = self.window[middle]
        median = np.median(neighbours, axis=0)
        above = jump.differences - median
        deviation = 1.4826 * np.median(np.abs(neighbours - median), axis=0)
        z = above / np.maximum(deviation, np.maximum(0.1 * median, 0.25))
        ratio = jump.differences / np.maximum(neighbours.max(0), 0.25)
        stands_out = (z >= SEAM_Z) & (ratio >= SEAM_RATIOS) & (above >= SEAM_LEVELS)
        if stands_out.any():
            clearest = int(np.argmax(np.where(stands_out, ratio / SEAM_RATIOS, 0)))
            self._keep(jump, float(z[clearest]), float(ratio[clearest]))

    def _neighbours(self, middle: int) -> np.ndarray:
        """Differences around the one in the middle, without its own [neighbours, 2]."""
        neighbours = []
        for place, jump in enumerate(self.window):
            if OWN < abs(place - middle) <= NEIGHBOURS:
                neighbours.append(jump.differences)
        return np.array(neighbours).reshape(-1, 2)

    def _keep(self, jump: Jump, z: float, ratio: float) -> None:
        kind = "cut" if jump.correlation < CUT_CORRELATION else "seam"
        seconds = round((jump.frame + 1) / self.fps, 3)
        seam = Seam(jump.frame, seconds, round(z, 2), round(ratio, 2), kind)
        if self.found and jump.frame - self.found[-1].frame <= OWN:  # one jump over two frames
            if seam.ratio <= self.found[-1].ratio:
                return
            self.counts[self.found.pop().kind] -= 1
        self.counts[kind] += 1
        self.found.append(seam)
        if len(self.found) > MAX_SEAMS:
            smallest = min(self.found[:-1], key=lambda seam: seam.ratio)
            self.found.remove(smallest)


class Motion:
    """Follows a video frame by frame.

    Args:
        fps: frames a second.
    """

    def __init__(self, fps: float) -> None:
        self.seams = SeamDetector(fps)
        self.frame: np.ndarray | None = None
        self.small: np.ndarray | None = None
        self.print: np.ndarray | None = None
        self.count = 0

    def add(self, frame: np.ndarray, small: np.ndarray) -> np.ndarray | None:
        """Follow the next frame [H, W, 3], at full and at working size.

        Returns:
            [2]: mean absolute difference to the previous frame in levels, and whether it is frozen; None for
            the first frame.
        """
        x = thumbprint(small, PRINT)
        result = None
        if self.frame is not None:
            difference = float(absolute(self.frame, frame).mean())
            cells = thumbprint(absolute(self.small, small), GRID)
            everywhere = float(np.exp(np.log(cells + 0.5).mean())) - 0.5
            differences = np.array([difference, everywhere])
            self.seams.add(Jump(self.count - 1, differences, correlation(x, self.print)))
            frozen = float(cells.max()) < FROZEN_LEVELS
            result = np.array([difference, frozen], np.float32)
        self.frame = frame
        self.small = small
        self.print = x
        self.count += 1
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of memory held: a frame, some thumbprints; does not grow."""
        held = 64 * (len(self.seams.window) + len(self.seams.found))
        for x in (self.frame, self.small, self.print):
            if x is not None:
                held += x.nbytes
        return held


def absolute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| of bytes, as bytes."""
    return np.maximum(a, b) - np.minimum(a, b)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of two thumbprints; 1 where one of them is flat and they are alike."""
    x = x - x.mean()
    y = y - y.mean()
    scale = float(np.sqrt((x * x).mean() * (y * y).mean()))
    if scale <= 1.0:
        return 1.0
    return float((x * y).mean()) / scale
