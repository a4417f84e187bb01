"""Line charts as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 24, 24
MOST_POINTS = 160


@dataclass(frozen=True)
class Line:
    """A curve: its legend, the number of its colour, and where the method's video jumps (seconds)."""

    name: str
    colour: int
    times: Sequence[float]
    values: Sequence[float]
    marks: Sequence[float] = ()


def chart(title: str, lines: Sequence[Line]) -> str:
    """One chart of several curves over seconds; `line.now` is moved by the page's players."""
    end = max(max(line.times) for line in lines)
    values = np.concatenate([np.asarray(line.values, float) for line in lines])
    ticks = nice_ticks(min(0.0, float(values.min())), float(values.max()))
    low, high = min(ticks[0], float(values.min())), max(ticks[-1], float(values.max()))

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}" '
        f'data-end="{end:g}" data-left="{LEFT}" data-right="{WIDTH - RIGHT}">',
        f'<text class="title" x="{LEFT}" y="14">{escape(title)}</text>',
    ]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in nice_ticks(0.0, end):
        if tick <= end:
            text = f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:g} s</text>'
            parts.append(text)
    for line in lines:
        for mark in line.marks:
            parts.append(
                f'<line class="mark c{line.colour}" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" '
                f'y2="{HEIGHT - BOTTOM}"><title>{escape(line.name)} jumps at {mark:.2f} s</title></line>'
            )
        times, heights = thin(line.times), thin(line.values)
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(times, heights, strict=True))
        parts.append(
            f'<polyline class="c{line.colour}" points="{points}"><title>{escape(line.name)}</title></polyline>'
        )
    parts.append(f'<line class="now" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>')
    return "".join(parts)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, few of them."""
    span = max(high - low, 1e-6)
    raw = span / (most - 1)
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(round(i * step, 12)) for i in np.arange(first, max(last, first + 1) + 1)]


def thin(x: Sequence[float], most: int = MOST_POINTS) -> np.ndarray:
    """At most `most` means of neighbouring values."""
    x = np.asarray(x, float)
    return x if len(x) <= most else np.array([part.mean() for part in np.array_split(x, most)])
