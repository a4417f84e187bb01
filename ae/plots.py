"""The picture of training curves."""

from collections import defaultdict
from pathlib import Path

from utils.figure import new_figure, save


def draw_curve(history: list[dict[str, float]], path: Path) -> None:
    """Training and held-out losses over epochs, one panel a loss."""
    columns = defaultdict(list)
    for row in history:
        for key, value in row.items():
            columns[key].append(value)
    epochs = [epoch + 1 for epoch in columns["epoch"]]
    names = [key.removeprefix("train_") for key in columns if key.startswith("train_")]
    figure = new_figure(3.2 * len(names), 3)
    panels = figure.subplots(1, len(names))
    for axes, name in zip(panels, names, strict=True):
        for part, label in (("train", "training"), ("val", "held out")):
            axes.plot(epochs, columns[f"{part}_{name}"], label=label)
        axes.set(title=name, xlabel="epoch")
    panels[-1].legend()
    save(figure, path, dpi=120)
