"""The picture of judged retrieval rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.figure import new_figure, save, tick_label

WITHOUT_DESCRIPTOR = ("random", "recency", "uniform")
AROUND = ", around"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Three panels: similarity over distance in time, origin of the retrieved frames, and hits with their intervals."""
    rules = report["rules"]
    colours = _colours(rules)
    figure = new_figure(13, 3.6)
    similarity, origin, hits = figure.subplots(1, 3)
    for name, rule in rules.items():
        around = name.endswith(AROUND)
        if name not in WITHOUT_DESCRIPTOR and not around:  # those have no curve of their own
            curve = rule["similarity_by_distance"]
            similarity.plot(range(1, len(curve) + 1), curve, label=name, color=colours[name])
        line = "--" if around else "-"
        origin.plot(rule["retrieved_from_tenth_of_past"], line, label=name, color=colours[name])
        mean, low, high = rule["metrics"]["hit"]
        whiskers = None if low is None else [[mean - low], [high - mean]]
        hits.errorbar([mean], [tick_label(name)], xerr=whiskers, fmt="o", capsize=3, color=colours[name])
    similarity.set(title="cosine of two frames", xlabel="latent frames apart")
    similarity.legend()
    origin.set(title="where retrieved frames come from", xlabel="tenth of the candidates, oldest first", ylim=(0, None))
    hits.set(title="hit rate, 95% interval")
    hits.invert_yaxis()
    save(figure, path, dpi=120)


def _colours(rules: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each rule; the two rules of one descriptor share theirs."""
    kinds: list[str] = []
    colours = {}
    for name in rules:
        kind = name.removesuffix(AROUND)
        if kind not in kinds:
            kinds.append(kind)
        colours[name] = f"C{kinds.index(kind)}"
    return colours
