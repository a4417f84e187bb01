"""What happens between frames, as a stream: flicker, seams, freezing, repetition."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from evaluation.picture import thumbprint

NEIGHBOURS, OWN = 8, 1  # frames on either side a jump is compared with, less those that belong to it
SEAM_Z, SEAM_LEVELS = 5.0, 2.0
SEAM_RATIOS = np.array([2.5, 2.0])  # of the mean over the picture, of the geometric mean over its cells
CUT_CORRELATION = 0.5
MAX_SEAMS = 100
FROZEN_LEVELS = 1.0  # a frame is frozen when no cell of GRID has changed by this much on average
GRID = (8, 8)
AWAY = 2.0  # how far the video must have gone, relative to how near it comes back
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


def flicker(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two frames of bytes, in levels (0..255)."""
    return float(absolute(a, b).mean())


def absolute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| of bytes, as bytes."""
    return np.maximum(a, b) - np.minimum(a, b)


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
        self.window: deque[tuple[int, np.ndarray, float]] = deque(maxlen=2 * NEIGHBOURS + 1)
        self.found: list[Seam] = []
        self.counts = {"seam": 0, "cut": 0}

    def add(self, frame: int, differences: np.ndarray, correlation: float) -> None:
        """The differences [2] between `frame` and the next one; `correlation` is that of their thumbprints."""
        self.window.append((frame, differences, correlation))
        if len(self.window) > NEIGHBOURS:
            self._judge(len(self.window) - 1 - NEIGHBOURS)

    def close(self) -> None:
        """Judge the last frames, whose window is one-sided."""
        for middle in range(max(0, len(self.window) - NEIGHBOURS), len(self.window)):
            self._judge(middle)

    def _judge(self, middle: int) -> None:
        frame, difference, correlation = self.window[middle]
        others = [d for i, (_, d, _) in enumerate(self.window) if OWN < abs(i - middle) <= NEIGHBOURS]
        if len(others) < NEIGHBOURS - OWN:
            return
        others = np.array(others)  # [neighbours, 2]
        median = np.median(others, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(others - median), axis=0), np.maximum(0.1 * median, 0.25))
        z, ratio = (difference - median) / spread, difference / np.maximum(others.max(0), 0.25)
        stands_out = (z >= SEAM_Z) & (ratio >= SEAM_RATIOS) & (difference - median >= SEAM_LEVELS)
        if not stands_out.any():
            return
        best = int(np.argmax(np.where(stands_out, ratio / SEAM_RATIOS, 0)))
        kind = "cut" if correlation < CUT_CORRELATION else "seam"
        seam = Seam(
            frame, round((frame + 1) / self.fps, 3), round(float(z[best]), 2), round(float(ratio[best]), 2), kind
        )
        if self.found and frame - self.found[-1].frame <= OWN:  # one jump over two frames
            if seam.ratio <= self.found[-1].ratio:
                return
            self.counts[self.found.pop().kind] -= 1
        self.counts[kind] += 1
        self.found.append(seam)
        if len(self.found) > MAX_SEAMS:
            self.found.remove(min(self.found[:-1], key=lambda seam: seam.ratio))


class RepetitionDetector:
    """Counts frames that show again, in the same order, what was shown a second or more ago.

    A frame is like an earlier one when their thumbprints differ by no more than neighbouring frames of the last
    second do (their median, at least half a level) and the video had been twice as far away in between. Half a
    second of frames that are like earlier ones, all by the same lag, is repetition; a camera that comes back the
    way it went is not. Compared are the last 30 seconds (at most 512 frames) and the first 3 (at most 64).
    """

    def __init__(self, fps: float) -> None:
        self.lag, self.run = max(2, round(fps)), max(2, round(fps / 2))
        self.steps: deque[float] = deque(maxlen=self.lag)
        recent, first = min(512, max(2 * self.lag, round(30 * fps))), min(64, max(1, round(3 * fps)))
        self.recent = np.zeros((recent, PRINT[0] * PRINT[1]), np.float32)  # a ring
        self.first = np.zeros((first, PRINT[0] * PRINT[1]), np.float32)
        self.recent_runs = np.zeros(recent, np.int64)  # by age: like frames so far
        self.first_runs = np.zeros(first, np.int64)  # by frame number
        self.count = 0
        self.longest = 0

    def add(self, x: np.ndarray) -> int:
        """How many more frames are known to be repeated, with the next frame's thumbprint x."""
        longest = self._compare(x) if self.count else 0
        if self.count < len(self.first):
            self.first[self.count] = x
        self.recent[self.count % len(self.recent)] = x
        self.count += 1
        begins = longest >= self.run > self.longest
        self.longest = longest
        return longest if begins else int(longest >= self.run)

    def _compare(self, x: np.ndarray) -> int:
        """Update the runs of like frames; the longest one."""
        held = min(self.count, len(self.recent))
        back = (self.count - 1 - np.arange(held)) % len(self.recent)  # newest first
        distance = np.abs(self.recent - x).mean(1)[back]
        self.steps.append(float(distance[0]))
        close = max(float(np.median(self.steps)), 0.5)
        gone = np.maximum.accumulate(distance) > AWAY * close
        like = (distance <= close) & gone
        like[: self.lag - 1] = False
        self.recent_runs[:held] = (self.recent_runs[:held] + 1) * like
        longest = int(self.recent_runs.max())
        if self.count > len(self.recent) and gone[-1]:  # the first frames have left the ring
            like = np.abs(self.first - x).mean(1) <= close
            self.first_runs = (np.concatenate([[0], self.first_runs[:-1]]) + 1) * like
            longest = max(longest, int(self.first_runs.max()))
        return longest

    @property
    def nbytes(self) -> int:
        """Bytes of memory held; constant."""
        return sum(x.nbytes for x in (self.recent, self.first, self.recent_runs, self.first_runs))


class Motion:
    """Follows a video frame by frame.

    Args:
        fps: frames a second.
    """

    def __init__(self, fps: float) -> None:
        self.seams = SeamDetector(fps)
        self.repetition = RepetitionDetector(fps)
        self.frame: np.ndarray | None = None
        self.small: np.ndarray | None = None
        self.print: np.ndarray | None = None
        self.count = 0

    def add(self, frame: np.ndarray, small: np.ndarray) -> np.ndarray | None:
        """Follow the next frame [H, W, 3], at full and at working size.

        Returns:
            [3]: mean absolute difference to the previous frame in levels, whether it is frozen, and how
            many more frames are now known to be repeated; None for the first frame.
        """
        x = thumbprint(small, PRINT)
        result = None
        repeated = self.repetition.add(x)
        if self.frame is not None:
            difference = flicker(self.frame, frame)
            cells = thumbprint(absolute(self.small, small), GRID)
            frozen = float(cells.max()) < FROZEN_LEVELS
            everywhere = float(np.exp(np.log(cells + 0.5).mean())) - 0.5
            self.seams.add(self.count - 1, np.array([difference, everywhere]), correlation(x, self.print))
            result = np.array([difference, frozen, 0 if frozen else repeated], np.float32)
        self.frame, self.small, self.print = frame, small, x
        self.count += 1
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of memory held: a frame, some thumbprints; does not grow."""
        held = sum(x.nbytes for x in (self.frame, self.small, self.print) if x is not None)
        return held + self.repetition.nbytes + 64 * (len(self.seams.window) + len(self.seams.found))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of two thumbprints; 1 where one of them is flat and they are alike."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).mean() * (y * y).mean()))
    return float((x * y).mean()) / scale if scale > 1.0 else 1.0
