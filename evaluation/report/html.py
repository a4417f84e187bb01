"""The report as one HTML page: players side by side, curves, what was retrieved, tables.

Here is gathered what page.html and chart.svg show; they are templates of jinja2, which escapes every text.
"""

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.compare.evaluate import Evaluation
from evaluation.compare.pairing import Key, Method
from evaluation.report import chart as box
from evaluation.report.chart import Chart, Curve, chart
from evaluation.report.text import (
    heading,
    interval_text,
    mean_text,
    p_text,
    signed_interval_text,
    verdict,
)
from evaluation.video.measure import CURVES, Measurement, Metric
from evaluation.video.motion import Seam
from evaluation.video.record import Record

HERE = Path(__file__).parent
COLOURS = 8
MOST_JUMPS = 12  # buttons beside a player
TITLE = 120  # characters of a prompt
ARROWS = {1: "↑", -1: "↓", 0: ""}
MEDIA_TYPES = {".webm": "video/webm", ".avi": "video/x-msvideo"}  # the others are played as mp4 where they can be
POLICY = (
    "default-src 'none'; img-src data:; media-src 'self' file: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)


@dataclass(frozen=True)
class MeanCell:
    """A method's mean of one metric."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class DifferenceCell:
    """Two methods' difference in one metric."""

    value: str
    interval: str
    p: str
    verdict: str


@dataclass(frozen=True)
class TableRow:
    """One metric in a table."""

    metric: Metric
    arrow: str
    cells: list[MeanCell] | list[DifferenceCell]


@dataclass(frozen=True)
class Jump:
    """A button that goes to a seam: `seek` is half a frame before it, in seconds."""

    seam: Seam
    seek: float


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of a retrieved frame, or of the one that asked (`kind` is "query")."""

    kind: str
    words: str
    frame: int
    seconds: float
    source: str


@dataclass(frozen=True)
class Player:
    """One method's video of an item."""

    colour: int
    name: str
    found: Measurement
    source: str
    jumps: list[Jump]
    strip: list[list[Thumbnail]]


@dataclass(frozen=True)
class Item:
    """One prompt's sample: the methods' videos beside one another."""

    title: str
    players: list[Player]
    charts: list[Chart]


def build(found: Evaluation, folder: Path, embed: bool = False) -> str:
    """The whole page.

    Args:
        folder: where the page will lie; videos are linked relative to it.
        embed: put the videos into the page, which can then be sent around alone.
    """
    keys: set[Key] = set()
    for measured in found.measured.values():
        keys.update(measured)
    items = []
    for key in sorted(keys):
        items.append(_item(found, key, folder, embed))
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=" / ".join(method.name for method in found.methods),
        policy=POLICY,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        found=found,
        colours=COLOURS,
        heading=heading(found),
        means=_means(found),
        differences=_differences(found),
        items=items,
        mean_charts=_mean_charts(found),
        box=box,
    )


def _means(found: Evaluation) -> list[TableRow]:
    rows = []
    if not found.means:
        return rows
    for name, metric in found.metrics.items():
        means = [found.means[method.name][name] for method in found.methods]
        worths = [metric.better * mean.mean for mean in means]
        differ = min(worths) < max(worths)
        cells = []
        for mean, worth in zip(means, worths, strict=True):
            best = differ and worth == max(worths)
            cells.append(MeanCell(mean_text(mean, metric.digits), interval_text(mean, metric.digits), best))
        rows.append(TableRow(metric, ARROWS[metric.better], cells))
    return rows


def _differences(found: Evaluation) -> list[TableRow]:
    rows = []
    if not found.differences:
        return rows
    for name, metric in found.metrics.items():
        cells = []
        for table in found.differences.values():
            difference = table[name]
            value = f"{difference.mean:+.{metric.digits}f}"
            interval = signed_interval_text(difference, metric.digits)
            cells.append(DifferenceCell(value, interval, p_text(difference.p), verdict(difference, metric)))
        rows.append(TableRow(metric, "", cells))
    return rows


def _mean_charts(found: Evaluation) -> list[Chart]:
    if len(found.compared) < 2:
        return []
    charts = []
    for name, title in CURVES.items():
        curves = []
        for number, method in enumerate(found.methods):
            measured = [found.measured[method.name][key] for key in found.compared]
            curves.append(_mean_curve(name, method.name, number % COLOURS, measured))
        charts.append(chart(title, curves))
    return charts


def _mean_curve(name: str, method: str, colour: int, measured: list[Measurement]) -> Curve:
    """A method's mean over its videos, as long as the shortest of them."""
    times = min((one.times for one in measured), key=len)
    values = [np.interp(times, one.times, one.curves[name]) for one in measured]
    return Curve(method, colour, times, np.mean(values, axis=0))


def _item(found: Evaluation, key: Key, folder: Path, embed: bool) -> Item:
    players = []
    for number, method in enumerate(found.methods):
        if key in found.measured[method.name]:
            measured = found.measured[method.name][key]
            players.append(_player(number % COLOURS, method, key, measured, folder, embed))
    charts = []
    for name, title in CURVES.items():
        curves = []
        for player in players:
            jumps = [seam.seconds for seam in player.found.seams]
            curves.append(Curve(player.name, player.colour, player.found.times, player.found.curves[name], jumps))
        charts.append(chart(title, curves))
    return Item(_title(found, key), players, charts)


def _title(found: Evaluation, key: Key) -> str:
    number = f"{key[0]}-{key[1]}"
    for method in found.methods:
        prompt = method.record(key).prompt
        if prompt is not None:
            return f"{number}: {prompt[:TITLE]}"
    return number


def _player(colour: int, method: Method, key: Key, one: Measurement, folder: Path, embed: bool) -> Player:
    jumps = []
    for seam in one.seams[:MOST_JUMPS]:
        jumps.append(Jump(seam, max(0.0, seam.seconds - 0.5 / one.fps)))
    source = _source(method.videos[key], folder, embed)
    return Player(colour, method.name, one, source, jumps, _strip(method.record(key), one))


def _source(path: Path, folder: Path, embed: bool) -> str:
    if embed:
        media_type = MEDIA_TYPES.get(path.suffix.lower(), "video/mp4")
        return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
    relative = os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/")
    return quote(os.fsencode(relative))


def _strip(record: Record, one: Measurement) -> list[list[Thumbnail]]:
    strip = []
    for row in record.rows:
        if row.query not in one.thumbnails:
            continue
        thumbnails = [_thumbnail("query", "block at", row.query, one)]
        for frame, similarity in zip(row.retrieved, row.similarities, strict=True):
            if frame in one.thumbnails:
                thumbnails.append(_thumbnail("", f"{similarity:.3f},", frame, one))
        strip.append(thumbnails)
    return strip


def _thumbnail(kind: str, words: str, frame: int, one: Measurement) -> Thumbnail:
    return Thumbnail(kind, words, frame, frame / one.fps, one.thumbnails[frame])
