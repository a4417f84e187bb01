"""Averages over time in bounded memory."""

import numpy as np


class BinnedMean:
    """Mean of a feature vector in each second; when the bins are used up, each two become one of double width.

    Args:
        features: length of the vector.
        bins: the most bins that are ever held, even.
        width: seconds of a bin at first.
    """

    def __init__(self, features: int, bins: int = 1024, width: float = 1.0) -> None:
        self.sums = np.zeros((bins, features), np.float32)
        self.counts = np.zeros(bins, np.int64)
        self.width = width
        self.used = 0

    def add(self, time: float, x: np.ndarray) -> None:
        """Add features x [features] of the frame shown at `time` seconds; times never decrease."""
        while int(time / self.width) >= len(self.counts):
            self._fold()
        bin = int(time / self.width)
        self.sums[bin] += x
        self.counts[bin] += 1
        self.used = bin + 1

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Middle of each bin that got frames, in seconds [T], and its mean features [T, features]."""
        filled = np.flatnonzero(self.counts[: self.used])
        means = self.sums[filled].astype(np.float64) / self.counts[filled, None]
        return (filled + 0.5) * self.width, means

    @property
    def nbytes(self) -> int:
        """Bytes of memory held; constant."""
        return self.sums.nbytes + self.counts.nbytes

    def _fold(self) -> None:
        half = len(self.counts) // 2
        self.sums[:half] = self.sums.reshape(half, 2, -1).sum(1)
        self.counts[:half] = self.counts.reshape(half, 2).sum(1)
        self.sums[half:], self.counts[half:] = 0, 0
        self.width *= 2
        self.used = half
