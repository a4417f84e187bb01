"""Whether a video goes on: how far its picture moves, and how much it shows that it has not shown before.

A still video has no drift, no seam and perfect consistency. So what moves and what is new is measured beside them.
Pictures are compared two a second, small and grey. A picture is laid over an earlier one where the two differ
least; then each of its cells is looked for there once more, at most `NEARBY` pixels around. Unlike its brightness,
which drifts, its texture must be found: a cell is known where its correlation with the earlier picture is high.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from evaluation.video.features import thumbprint

PICTURES_A_SECOND = 2.0
SIZE = (64, 40)  # width and height, pixels
CELL = 8  # pixels a side
NEARBY = 2  # pixels around the picture's shift at which a cell may lie
KNOWN = 0.7  # correlation from which on a cell is known
FLAT = 6.0  # levels; a cell of a smaller deviation has nothing to recognise
LEAST_OVERLAP = 0.35  # share of the picture that two pictures must have in common
MOST_VIEWS = 64  # pictures that are remembered


@dataclass(frozen=True)
class Match:
    """How a picture lies over an earlier one.

    Attributes:
        shift: [2] pixels down and to the right, of the whole picture's content since the earlier one.
        shifts: [cells, 2] the same of each cell that was looked for.
        known: [cells] whether that cell was found.
    """

    shift: np.ndarray
    shifts: np.ndarray
    known: np.ndarray


class View:
    """A small grey picture, ready to be laid over others.

    Args:
        x: [height, width] levels.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Of its differences from its mean."""
        return _spectrum(self.x - self.x.mean())

    @cached_property
    def square_spectrum(self) -> np.ndarray:
        """Of the squares of these."""
        return _spectrum((self.x - self.x.mean()) ** 2)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, once both spectra are."""
        height, width = self.x.shape
        return self.x.nbytes + 2 * 8 * (2 * height) * (width + 1)


def match(earlier: View, later: View, cells: np.ndarray) -> Match:
    """Lay a picture over an earlier one and look for these cells of it, [cells] numbers."""
    shift = best_shift(earlier, later)
    around = _offsets()
    places = _corners()[cells, None] - shift - around  # [cells, offsets, 2]: where each cell was
    limit = np.array(earlier.x.shape) - CELL
    inside = ((places >= 0) & (places <= limit)).all(-1)
    windows = np.lib.stride_tricks.sliding_window_view(earlier.x, (CELL, CELL))
    places = places.clip(0, limit)
    before = windows[places[..., 0], places[..., 1]].reshape(*inside.shape, -1)
    after = _cells(later.x)[cells]
    correlation = np.where(inside, _correlation(before, after[:, None]), -1.0)
    best = correlation.argmax(1)
    known = correlation.max(1) >= KNOWN
    return Match(shift, shift + around[best], known)


def best_shift(earlier: View, later: View) -> np.ndarray:
    """[2] pixels down and to the right by which the picture moved: where the two differ least where they overlap."""
    height, width = earlier.x.shape
    ones, shared = _overlaps(height, width)
    spectrum = np.conj(earlier.square_spectrum) * ones + np.conj(ones) * later.square_spectrum
    spectrum -= 2 * np.conj(earlier.spectrum) * later.spectrum
    difference = np.fft.irfft2(spectrum)
    enough = shared >= LEAST_OVERLAP * height * width
    mean_square = np.where(enough, difference / np.maximum(shared, 1.0), np.inf)
    mean_square = mean_square.round(2)  # levels squared; of equal ones the first is the smallest shift
    down, right = np.unravel_index(mean_square.argmin(), mean_square.shape)
    down = down if down < height else down - 2 * height
    right = right if right < width else right - 2 * width
    return np.array([down, right])


def textured(x: np.ndarray) -> np.ndarray:
    """[cells] which cells of a picture have something to recognise."""
    return _cells(x).std(1) >= FLAT


class Progression:
    """Follows a video picture by picture in memory that does not grow.

    Args:
        fps: frames a second.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.every = max(1, round(fps / PICTURES_A_SECOND))
        self.views: list[View] = []
        self.last: View | None = None
        self.count = 0
        self.total = 0.0
        self.net = np.zeros(2)
        self.new = 0.0

    def add(self, small: np.ndarray) -> None:
        """Follow the next frame [H, W, 3] of bytes, at working size."""
        if self.count % self.every == 0:
            self._look(View(thumbprint(small, SIZE).reshape(SIZE[::-1])))
        self.count += 1

    def scores(self) -> dict[str, float]:
        """Total and net motion in picture widths a minute, new content in pictures a minute."""
        minutes = max(self.count, 1) / self.fps / 60
        return {
            "new content": self.new / minutes,
            "motion": self.total / SIZE[0] / minutes,
            "net motion": float(np.linalg.norm(self.net)) / SIZE[0] / minutes,
        }

    def _look(self, view: View) -> None:
        cells = np.flatnonzero(textured(view.x))
        if self.last is None:
            self.views.append(view)
        elif len(cells):
            found = match(self.last, view, cells)
            if found.known.any():
                shifts = found.shifts[found.known]
                self.total += float(np.linalg.norm(shifts, axis=1).mean())
                self.net += np.median(shifts, axis=0)
            self._compare(view, cells[~found.known])
        self.last = view

    def _compare(self, view: View, unknown: np.ndarray) -> None:
        """Count the cells that no remembered picture shows; remember a picture that shows such cells."""
        for earlier in sorted(self.views, key=lambda earlier: np.square(earlier.x - view.x).mean()):
            if not len(unknown):
                return
            unknown = unknown[~match(earlier, view, unknown).known]
        if len(unknown):
            self.new += len(unknown) / len(_corners())
            self.views.append(view)
            if len(self.views) > MOST_VIEWS:
                del self.views[len(self.views) // 2]  # the first and the latest stay the longest

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        held = sum(view.nbytes for view in self.views)
        return held + (self.last.nbytes if self.last else 0)


def progression(frames: Sequence[np.ndarray], fps: float) -> dict[str, float]:
    """The scores of a whole video of small frames, each [H, W, 3] of bytes."""
    followed = Progression(fps)
    for frame in frames:
        followed.add(frame)
    return followed.scores()


@cache
def _corners() -> np.ndarray:
    """[cells, 2] row and column at which each cell begins."""
    rows = np.arange(0, SIZE[1], CELL)
    columns = np.arange(0, SIZE[0], CELL)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


@cache
def _offsets() -> np.ndarray:
    """[offsets, 2] where a cell is looked for around its place; the nearest first, which counts among equal ones."""
    steps = np.arange(-NEARBY, NEARBY + 1)
    around = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    return around[np.argsort(np.abs(around).sum(1), kind="stable")]


@cache
def _overlaps(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The spectrum of a picture of ones, and how many pixels two pictures share at each shift."""
    ones = _spectrum(np.ones((height, width)))
    return ones, np.fft.irfft2(np.conj(ones) * ones)


def _cells(x: np.ndarray) -> np.ndarray:
    """A picture's cells, [cells, CELL * CELL]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (CELL, CELL))[::CELL, ::CELL]
    return windows.reshape(-1, CELL * CELL)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation along the last axis; 0 where one of the two is flat."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(scale > 1e-6, (a * b).sum(-1) / np.maximum(scale, 1e-6), 0.0)


def _spectrum(x: np.ndarray) -> np.ndarray:
    """Spectrum of a picture in the middle of nothing, so that no shift wraps around."""
    return np.fft.rfft2(x, (2 * x.shape[0], 2 * x.shape[1])).astype(np.complex64)
