"""Line charts: curves over seconds as positions in a picture, which chart.svg draws."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 420
HEIGHT = 170
LEFT = 46
RIGHT = 412
TOP = 24
BOTTOM = 146
MOST_POINTS = 160


@dataclass(frozen=True)
class Curve:
    """A curve over seconds: its legend, the number of its colour, and where the method's video jumps."""

    name: str
    colour: int
    times: Sequence[float]
    values: Sequence[float]
    jumps: Sequence[float] = ()


@dataclass(frozen=True)
class Tick:
    """A number beside an axis, and how far along it that is."""

    position: float
    value: float


@dataclass(frozen=True)
class Mark:
    """A jump as a vertical line."""

    x: float
    seconds: float


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn; `points` is the text of an SVG polyline."""

    name: str
    colour: int
    points: str
    marks: list[Mark]


@dataclass(frozen=True)
class Chart:
    """All positions of a chart, in units of its view box."""

    title: str
    end: float
    across: list[Tick]
    up: list[Tick]
    lines: list[Line]


def chart(title: str, curves: Sequence[Curve]) -> Chart:
    """One chart of several curves."""
    end = max(curve.times[-1] for curve in curves)
    values = np.concatenate([curve.values for curve in curves])
    lowest = float(values.min())
    highest = float(values.max())
    ticks = nice_ticks(min(0.0, lowest), highest)
    low = min(ticks[0], lowest)
    high = max(ticks[-1], highest)

    def x(seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * seconds / end

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    up = [Tick(y(value), value) for value in ticks]
    across = [Tick(x(seconds), seconds) for seconds in nice_ticks(0.0, end) if seconds <= end]
    lines = []
    for curve in curves:
        points = []
        for seconds, value in zip(thin(curve.times), thin(curve.values), strict=True):
            points.append(f"{x(seconds):.1f},{y(value):.1f}")
        marks = [Mark(x(seconds), seconds) for seconds in curve.jumps]
        lines.append(Line(curve.name, curve.colour, " ".join(points), marks))
    return Chart(title, end, across, up, lines)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, few of them."""
    raw = max(high - low, 1e-6) / (most - 1)
    power = 10.0 ** np.floor(np.log10(raw))
    for factor in (1, 2, 2.5, 5, 10):
        step = power * factor
        if step >= raw * (1 - 1e-9):
            break
    first = np.floor(low / step + 1e-9)
    last = max(np.ceil(high / step - 1e-9), first + 1)
    ticks = np.arange(first, last + 1) * step
    return ticks.round(12).tolist()


def thin(x: Sequence[float], most: int = MOST_POINTS) -> np.ndarray:
    """At most `most` means of neighbouring values."""
    x = np.asarray(x, float)
    if len(x) <= most:
        return x
    return np.array([part.mean() for part in np.array_split(x, most)])
