"""The report as one HTML page: players side by side, curves, what was retrieved, tables."""

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from evaluation.chart import Line, chart
from evaluation.evaluate import Evaluation
from evaluation.match import Key, record_of
from evaluation.measure import CURVES, Measurement
from evaluation.report import cell, difference_cell, gained, heading
from evaluation.retrieved import rows

HERE = Path(__file__).parent
COLOURS = 8
_SPEEDS = "".join(
    f'<option value="{speed}"{" selected" * (speed == 1)}>{speed:g}&times;</option>' for speed in (0.25, 0.5, 1, 2, 4)
)
POLICY = (
    "default-src 'none'; img-src data:; media-src 'self' file: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)


def build(found: Evaluation, folder: Path, embed: bool = False) -> str:
    """The whole page.

    Args:
        folder: where the page will lie; videos are linked relative to it.
        embed: put the videos into the page, which can then be sent around alone.
    """
    keys = sorted({key for table in found.measured.values() for key in table})
    options = "".join(f"<option>{escape(_title(found, key))}</option>" for key in keys)
    items = "".join(_item(found, key, folder, embed) for key in keys)
    count = len(found.compared)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(" / ".join(method.name for method in found.methods))}</title>
<style>{(HERE / "page.css").read_text()}</style>
</head>
<body data-errors="0" data-ready="0" data-players="0" data-loaded="0" data-unplayable="0">
<h1>{escape(" / ".join(method.name for method in found.methods))}</h1>
<p class="soft">{_legend(found)}</p>
<div id="errors" hidden></div>
{_problems(found)}
<div class="tables"><div><h2>Means over {count} compared video{"s" * (count != 1)}</h2>{_means(found)}</div>
{_differences(found)}</div>
<h2>Videos</h2>
<div class="controls"><select id="pick" aria-label="video">{options}</select>
<button id="play">Play</button><input id="seek" type="range" min="0" max="1" step="0.01" value="0" aria-label="time">
<span id="clock"></span><select id="speed" aria-label="speed">{_SPEEDS}</select></div>
{items}
{_mean_curves(found)}
{"".join(f'<p class="soft">{escape(note)}</p>' for note in found.notes)}
<script>{(HERE / "page.js").read_text()}</script>
</body>
</html>
"""


def _legend(found: Evaluation) -> str:
    return " &nbsp; ".join(
        f'<span class="key k{i % COLOURS}"></span>{escape(method.name)} ({escape(str(method.path))})'
        for i, method in enumerate(found.methods)
    )


def _problems(found: Evaluation) -> str:
    if not found.problems:
        return ""
    lines = "".join(f"<li>{escape(problem.place)}: {escape(problem.why)}</li>" for problem in found.problems)
    return f'<div class="problems">{heading(found)}<ul>{lines}</ul></div>'


def _means(found: Evaluation) -> str:
    if not found.means:
        return "<p>No video can be compared; each is shown below.</p>"
    head = "".join(f"<th>{escape(method.name)}</th>" for method in found.methods)
    body = ""
    for name, metric in found.metrics.items():
        means = [found.means[method.name][name] for method in found.methods]
        best = max(metric.better * mean.mean for mean in means)
        alike = metric.better == 0 or len({mean.mean for mean in means}) == 1
        cells = ""
        for mean in means:
            value, interval = cell(mean, metric.digits)
            mark = ' class="best"' if metric.better * mean.mean == best and not alike else ""
            cells += f"<td><span{mark}>{value}</span><small>{interval}</small></td>"
        unit = f" <small>{escape(metric.unit)}</small>" if metric.unit else ""
        arrow = {1: "↑", -1: "↓", 0: ""}[metric.better]
        part = "" if metric.ranked else ' class="part"'
        body += f"<tr{part}><td>{escape(metric.label)} {arrow}{unit}</td>{cells}</tr>"
    if found.ranks:
        cells = "".join(f"<td>{found.ranks[method.name]:.2f}</td>" for method in found.methods)
        body += (
            f"<tr><td>average rank ↓ <small>over the {len(found.ranked)} unindented metrics</small></td>{cells}</tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr><th>metric</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="soft">Brackets: 95% bootstrap intervals over prompts. ↓ less is better, ↑ more is better.</p>'
    )


def _differences(found: Evaluation) -> str:
    if not found.differences:
        return ""
    head = "".join(f"<th>{escape(b)} &minus; {escape(a)}</th><th>p</th>" for a, b in found.differences)
    body = ""
    for name, metric in found.metrics.items():
        cells = ""
        for table in found.differences.values():
            value, interval, p = difference_cell(table[name], metric.digits)
            kind = gained(table[name], metric)
            cells += f'<td class="{kind}">{value}<small>{interval} {kind}</small></td><td>{p}</td>'
        part = "" if metric.ranked else ' class="part"'
        body += f"<tr{part}><td>{escape(metric.label)}</td>{cells}</tr>"
    return (
        f'<div><h2>Paired differences</h2><div class="scroll"><table><thead><tr><th>metric</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="soft">Differences between videos of the same prompt. p: sign-flip permutation test, two-sided, not '
        "corrected for the number of metrics (report.json has Holm's correction). Better and worse are said where p is "
        "below 0.05 and the interval leaves out zero; fewer than 6 prompts cannot reach that.</p></div>"
    )


def _mean_curves(found: Evaluation) -> str:
    if len(found.compared) < 2:
        return ""
    charts = ""
    for name, title in CURVES.items():
        lines = []
        for colour, method in enumerate(found.methods):
            measured = [found.measured[method.name][key] for key in found.compared]
            times = min((one.times for one in measured), key=len)
            values = np.mean([np.interp(times, one.times, one.curves[name]) for one in measured], axis=0)
            lines.append(Line(method.name, colour % COLOURS, times, values))
        charts += chart(title, lines)
    return f'<h2>Mean curves over the compared videos</h2><div class="charts">{charts}</div>'


def _title(found: Evaluation, key: Key) -> str:
    for method in found.methods:
        prompt = record_of(method.videos[key]).get("prompt") if key in method.videos else None
        if isinstance(prompt, str):
            return f"{key[0]}-{key[1]}: {prompt[:120]}"
    return f"{key[0]}-{key[1]}"


def _item(found: Evaluation, key: Key, folder: Path, embed: bool) -> str:
    here = [(i, m, found.measured[m.name][key]) for i, m in enumerate(found.methods) if key in found.measured[m.name]]
    players = strips = ""
    for colour, method, one in here:
        path = method.videos[key]
        players += _player(colour % COLOURS, method.name, one, _source(path, folder, embed))
        strips += _strip(method.name, record_of(path), one)
    charts = "".join(
        chart(title, [Line(m.name, i % COLOURS, one.times, one.curves[name], _jumps(one)) for i, m, one in here])
        for name, title in CURVES.items()
    )
    return (
        f'<section class="item" hidden><div class="players">{players}</div>'
        f'<div class="charts">{charts}</div>{strips}</section>\n'
    )


def _jumps(one: Measurement) -> Sequence[float]:
    return [seam.seconds for seam in one.seams]


def _player(colour: int, name: str, one: Measurement, source: str) -> str:
    jumps = " ".join(
        f'<button class="jump" data-seek="{max(0.0, seam.seconds - 0.5 / one.fps):.3f}" '
        f'title="{seam.ratio:.1f} times the largest difference around it">{seam.kind} '
        f"{seam.frame}→{seam.frame + 1}</button>"
        for seam in one.seams[:12]
    )
    onset = "" if one.onset is None else f", visibly from {one.onset:.0f} s"
    return (
        f'<figure><figcaption><span class="key k{colour}"></span><b>{escape(name)}</b> '
        f'<span class="soft">drift {one.scores["drift"]:.2f}{onset}; {one.frames} frames of '
        f"{one.size[0]}&times;{one.size[1]}</span> {jumps}</figcaption>"
        f'<video muted playsinline preload="metadata" data-src="{escape(source, quote=True)}"></video>'
        '<div class="unplayable" hidden>The browser cannot play this file.</div></figure>'
    )


def _source(path: Path, folder: Path, embed: bool) -> str:
    if embed:
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    return quote(os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/"))


def _strip(name: str, record: dict, one: Measurement) -> str:
    shown = ""
    for row in rows(record):
        if row.query not in one.thumbnails:
            continue
        shown += f'<div class="strip">{_thumbnail(one, row.query, "block at", "query")}'
        for frame, similarity in zip(row.retrieved, row.similarities, strict=True):
            if frame in one.thumbnails:
                shown += _thumbnail(one, frame, f"{similarity:.3f},")
        shown += "</div>"
    return f"<h3>What {escape(name)} retrieved</h3>{shown}" if shown else ""


def _thumbnail(one: Measurement, frame: int, words: str, kind: str = "") -> str:
    return (
        f'<div class="{kind}"><img alt="frame {frame}" src="{one.thumbnails[frame]}">'
        f"{words} {frame / one.fps:.1f} s</div>"
    )
