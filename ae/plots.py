"""Pictures of training curves and of judged retrieval rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curve(history: list[dict[str, float]], path: Path) -> None:
    """Training and held-out losses over epochs, one panel a loss."""
    names = [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    figure = _figure(3.2 * len(names), 3)
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for part, label in (("train", "training"), ("val", "held out")):
            axes.plot([row["epoch"] + 1 for row in history], [row[f"{part}_{name}"] for row in history], label=label)
        axes.set(title=name, xlabel="epoch")
    axes.legend()
    _write(figure, path)


def draw_evaluation(report: Mapping[str, Any], path: Path) -> None:
    """Three panels: similarity over distance in time, origin of the retrieved frames, and hits with their intervals."""
    rules = report["rules"]
    figure = _figure(13, 3.6)
    similarity, origin, hits = figure.subplots(1, 3)
    kinds = list(dict.fromkeys(name.removesuffix(", around") for name in rules))
    colours = {name: f"C{kinds.index(name.removesuffix(', around'))}" for name in rules}
    lines = {name: "--" if name.endswith(", around") else "-" for name in rules}
    for name, rule in rules.items():
        # The choice of these follows from no descriptor, or from one that is drawn already.
        if name not in ("random", "recency", "uniform") and not name.endswith(", around"):
            curve = rule["similarity_by_distance"]
            similarity.plot(range(1, len(curve) + 1), curve, label=name, color=colours[name])
        origin.plot(rule["retrieved_from_tenth_of_past"], lines[name], label=name, color=colours[name])
        mean, low, high = rule["metrics"]["hit"]
        hits.errorbar([mean], [name], xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=colours[name])
    similarity.set(title="cosine of two frames", xlabel="latent frames apart")
    similarity.legend()
    origin.set(title="where retrieved frames come from", xlabel="tenth of the candidates, oldest first", ylim=(0, None))
    hits.set(title="hit rate, 95% interval")
    hits.invert_yaxis()
    _write(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # pyplot would choose a backend and keep the figure in a global

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: "Figure", path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120)
