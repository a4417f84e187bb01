"""How far a video has gone from its first seconds: curves over time, and one score."""

import numpy as np

from evaluation.video.features import SCALARS

COLOUR = slice(0, 6)
DETAIL = slice(9, 11)
CONTRAST = SCALARS.index("contrast")
SATURATION = SCALARS.index("saturation")
CLIPPING = SCALARS.index("clipping")
COLOUR_UNIT = 10.0  # CIELAB units that count as 1
DETAIL_UNIT = 1.0  # octaves that count as 1
FASTEST = 0.25  # drift a step: what is faster is a change of scene and counts at most twice this
FIRST_SECONDS = 5.0


def first(times: np.ndarray) -> np.ndarray:
    """Which bins are the first seconds: five of them, at most a sixth of the video, at least one bin."""
    end = times[-1] + times[0]
    return (times < min(FIRST_SECONDS, end / 6)) | (times == times[0])


def late(times: np.ndarray) -> np.ndarray:
    """Which bins are the last third."""
    end = times[-1] + times[0]
    return times >= min(times[-1], end * 2 / 3)


def drift_curves(times: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Distances from the first seconds.

    Args:
        times: middle of each bin in seconds [T].
        x: mean features of `picture.describe` [T, features].

    Returns:
        Curves [T]. colour: CIELAB units; contrast: octaves; saturation: CIELAB units; clipping: percentage
        points; detail: octaves; structure: correlation of the descriptors, at most 1; drift: see `drift`.
    """
    away = x - x[first(times)].mean(0)
    return {
        "drift": drift(times, x),
        "colour": np.linalg.norm(away[:, COLOUR], axis=1),
        "contrast": away[:, CONTRAST],
        "saturation": away[:, SATURATION],
        "clipping": 100 * away[:, CLIPPING],
        "detail": np.linalg.norm(away[:, DETAIL], axis=1),
        "structure": _similarity(times, x),
    }


def drift_scores(times: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """One number for each of `drift_curves`: how far the last third is from the first seconds, on average.

    Displacements are averaged before their length is taken, so that what sways about its start cancels out.
    """
    begin = first(times)
    end = late(times)
    away = x[end].mean(0) - x[begin].mean(0)
    distances = []
    for path in _paths(x):
        distances.append(np.linalg.norm(path[end].mean(0) - path[begin].mean(0)))
    return {
        "drift": float(min(distances)),
        "colour": float(np.linalg.norm(away[COLOUR])),
        "contrast": abs(float(away[CONTRAST])),
        "saturation": abs(float(away[SATURATION])),
        "clipping": 100 * abs(float(away[CLIPPING])),
        "detail": float(np.linalg.norm(away[DETAIL])),
        "structure": float(_similarity(times, x)[end].mean()),
    }


def drift(times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Drift of each bin: how far colour and fine detail are from the first seconds.

    With the vector v = (mean and standard deviation of L*, a*, b* / 10, log2 detail of L* and of (a*, b*)),
    drift is |v(t) - v(first seconds)|: 1 is ten CIELAB units or one octave of detail. The colour part is the
    2-Wasserstein distance between normal distributions of independent L*, a*, b*.

    A change of scene moves v as well, but at once. So v is followed a second time along a path on which a step
    s from one bin to the next that is longer than c = 0.25 is shortened to c (2 - c / |s|), less than 2c. The drift
    is the smaller of the two distances: coming back to the first seconds always counts as having come back.
    """
    begin = first(times)
    distances = []
    for path in _paths(x):
        distances.append(np.linalg.norm(path - path[begin].mean(0), axis=1))
    return np.minimum(*distances)


def _paths(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vector v of `drift` at each bin [T, 8], and its path of shortened steps."""
    v = np.concatenate([x[:, COLOUR] / COLOUR_UNIT, x[:, DETAIL] / DETAIL_UNIT], axis=1)
    steps = np.diff(v, axis=0)
    length = np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-12)
    steps = np.where(length > FASTEST, steps / length * FASTEST * (2 - FASTEST / length), steps)
    return v, np.concatenate([np.zeros((1, v.shape[1])), steps.cumsum(0)])


def _similarity(times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Correlation of each bin's structure descriptor with that of the first seconds [T]."""
    shape = x[:, len(SCALARS) :] - x[:, len(SCALARS) :].mean(1, keepdims=True)
    start = shape[first(times)].mean(0)
    lengths = np.linalg.norm(shape, axis=1) * np.linalg.norm(start)
    # A video without any edge has no structure to lose.
    return np.where(lengths > 1e-9, shape @ start / np.maximum(lengths, 1e-9), 1.0)


def onset(times: np.ndarray, curve: np.ndarray, level: float = 1.0) -> float | None:
    """Second from which the drift stays at or above `level` to the end; None if it does not."""
    below = np.flatnonzero(curve < level)
    if len(below) and below[-1] == len(curve) - 1:
        return None
    if len(below) == 0:
        return float(times[0])
    return float(times[below[-1] + 1])
